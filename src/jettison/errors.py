"""The two kinds of error that a user sees. Each is one clear line: the thing, the value, what would be valid."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 120  # characters of a value that an error repeats
LONGEST_ERROR = 5000
LONGEST_REASON = 500  # characters of another program's reason that are repeated


class JettisonError(Exception):
    """Something went wrong while doing what was asked. The command line exits with 1."""

    def __init__(self, message: str):
        super().__init__(_line(message))


class UsageError(JettisonError):
    """What was asked cannot be done as asked. The command line exits with 2."""


def _line(text: str) -> str:
    """On one line and not endless, whatever names it repeats; of a long name both ends stay."""
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    text = re.sub(r"\S{1000,}", lambda name: f"{name[0][:400]}...{name[0][-400:]}", text)
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."


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
        raise UsageError(f"{what}: {reason[:LONGEST_REASON] or type(error).__name__}") from error


def shown(value: object) -> str:
    """A value that was given, as an error says it: on one line, and not all of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def unknown(kind: str, value: object, valid: Iterable[object], context: str = "") -> UsageError:
    """The error for a name that is not in a list: says what is valid and, if one is close, what was meant."""
    names = sorted(map(str, valid))
    close = get_close_matches(value[:LONGEST], names, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UsageError(f"unknown {kind} {shown(value)}{context}{hint}; valid: {', '.join(names)}")
