"""The two kinds of error that a user sees. Each is one clear line: the thing, the value, what would be valid."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 500  # letters of another program's reason that are repeated


class JettisonError(Exception):
    """Something went wrong while doing what was asked. The command line exits with 1."""


class UsageError(JettisonError):
    """What was asked cannot be done as asked. The command line exits with 2."""


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Around other people's code that reads a user's files: whatever it raises becomes a UsageError, ``what: reason``.

    Config classes and tokenizers raise whatever they run into, and a panic in Rust is not even an Exception.
    """
    try:
        yield
    except JettisonError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())  # further paragraphs are advice
        raise UsageError(f"{what}: {reason[:LONGEST] or type(error).__name__}") from error


def unknown(kind: str, value: object, valid: Iterable[str], context: str = "") -> UsageError:
    """The error for a name that is not in a list: says what is valid and, if one is close, what was meant."""
    names = sorted(valid)
    close = get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UsageError(f"unknown {kind} {value!r}{context}{hint}; valid: {', '.join(names)}")
