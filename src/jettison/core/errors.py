"""The two kinds of error that a user sees. Their messages are one line: the thing, the value, what would be valid."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from tempfile import TemporaryFile
from threading import RLock
from typing import Any

LONGEST = 120  # characters of a value that an error repeats
LONGEST_ERROR = 5000  # characters of a message
LONGEST_REASON = 500  # characters of another library's message that are repeated
PANIC = "PanicException"  # every module that uses pyo3 has its own class of this name
# _stderr: descriptor of the real stderr. _LOCK: held by the thread that has redirected descriptor 2 to a file.
_stderr, _LOCK = 2, RLock()
_SPARE: list[Any] = []  # empty files for such redirections
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SPARE.clear)  # otherwise a child would write to its parent's files


class JettisonError(Exception):
    """A requested operation failed. The command line exits with 1."""

    def __init__(self, message: str):
        super().__init__(_line(message))


class UsageError(JettisonError):
    """A request is not valid. The command line exits with 2."""


def _line(text: str) -> str:
    """The text on one line and of limited length. Of very long words both ends are kept."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    text = re.sub(r"\S{1000,}", lambda name: f"{name[0][:400]}...{name[0][-400:]}", text)
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."


@contextmanager
def guarded(what: str, rust: bool = False) -> Iterator[None]:
    """Turn every exception of a library that reads a user's files into a UsageError, ``what: reason``.

    Config classes and tokenizers raise exceptions of any class, and a panic in Rust is not even an Exception.

    rust: whether to drop what a panic writes to stderr. Other output to stderr appears at the end.
    """
    try:
        with _panics_muted() if rust else nullcontext():
            yield
    except JettisonError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())  # further paragraphs are advice
        raise UsageError(f"{what}: {reason[:LONGEST_REASON] or type(error).__name__}") from error


@contextmanager
def _panics_muted() -> Iterator[None]:
    """Redirect descriptor 2 to a file, because Rust writes to the descriptor and not through Python."""
    global _stderr
    with _LOCK:
        try:
            file, before = _SPARE.pop() if _SPARE else TemporaryFile(buffering=0), os.dup(2)  # noqa: SIM115 (kept)
        except OSError:  # no file can be made, or there is no stderr
            yield
            return
        panicked, outer = False, _stderr
        _stderr = before if outer == 2 else outer
        _redirect_stderr(file.fileno())
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == PANIC
            raise
        finally:
            _redirect_stderr(before)
            _stderr = outer
            os.close(before)
            if file.tell():
                file.seek(0)
                with suppress(OSError):  # the reader of stderr has gone
                    while not panicked and (output := file.read(1 << 16)):
                        os.write(2, output)
                file.seek(0)
                file.truncate()
            _SPARE.append(file)


def stderr() -> int:
    """Return the descriptor of the real stderr, also while 2 is redirected to a file, for messages before an exit."""
    return _stderr


def _redirect_stderr(to: int) -> None:
    with suppress(AttributeError, OSError, ValueError):  # Python has no stderr, or it is closed
        sys.stderr.flush()
    os.dup2(to, 2)


def shown(value: object) -> str:
    """Return a value as errors show it: on one line, and shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; a deeply nested value
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def unknown(kind: str, value: object, valid: Iterable[object], context: str = "") -> UsageError:
    """Return the error for a name that is not in a list. It lists the valid names and suggests a similar one.

    kind: of name, such as ``format``.
    context: words that follow the name in the message.
    """
    names = sorted(map(str, valid))
    close = get_close_matches(value[:LONGEST], names, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return UsageError(f"unknown {kind} {shown(value)}{context}{hint}; valid: {', '.join(names)}")
