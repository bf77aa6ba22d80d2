"""The two kinds of error that a user sees. Each is one clear line: the thing, the value, what would be valid."""

from collections.abc import Iterable
from difflib import get_close_matches


class JettisonError(Exception):
    """Something went wrong while doing what was asked. The command line exits with 1."""


class UsageError(JettisonError):
    """What was asked cannot be done as asked. The command line exits with 2."""


def unknown(kind: str, value: object, valid: Iterable[str], context: str = "") -> UsageError:
    """The error for a name that is not in a list: says what is valid and, if one is close, what was meant."""
    names = sorted(valid)
    close = get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UsageError(f"unknown {kind} {value!r}{context}{hint}; valid: {', '.join(names)}")
