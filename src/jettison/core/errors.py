"""The two kinds of error that a user sees. Each is one clear line: the thing, the value, what would be valid."""

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
LONGEST_ERROR = 5000
LONGEST_REASON = 500  # characters of another program's reason that are repeated
PANIC = "PanicException"  # of pyo3, which has a class of this name in every module of its own
_stderr, _LOCK = 2, RLock()  # the latter held by the thread that has 2 turned to a file
_SPARE: list[Any] = []  # such files that are empty
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SPARE.clear)  # a child would write to its parent's


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
def guarded(what: str, rust: bool = False) -> Iterator[None]:
    """Around other people's code that reads a user's files: whatever it raises becomes a UsageError, ``what: reason``.

    Config classes and tokenizers raise whatever they run into, and a panic in Rust is not even an Exception. rust: what
    that says on stderr before it raises is dropped; what others say there comes out at the end.
    """
    try:
        with _panics_unsaid() if rust else nullcontext():
            yield
    except JettisonError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())  # further paragraphs are advice
        raise UsageError(f"{what}: {reason[:LONGEST_REASON] or type(error).__name__}") from error


@contextmanager
def _panics_unsaid() -> Iterator[None]:
    """Rust writes to the descriptor, past Python: that leads to a file meanwhile."""
    global _stderr
    with _LOCK:
        try:
            held, before = _SPARE.pop() if _SPARE else TemporaryFile(buffering=0), os.dup(2)  # noqa: SIM115 (kept)
        except OSError:  # there is no place for a file, or no stderr
            yield
            return
        panicked, outer = False, _stderr
        _stderr = before if outer == 2 else outer
        _turn_stderr(held.fileno())
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == PANIC
            raise
        finally:
            _turn_stderr(before)
            _stderr = outer
            os.close(before)
            if held.tell():
                held.seek(0)
                with suppress(OSError):  # nobody reads it
                    while not panicked and (said := held.read(1 << 16)):
                        os.write(2, said)
                held.seek(0)
                held.truncate()
            _SPARE.append(held)


def stderr() -> int:
    """The descriptor of stderr, also while 2 leads to a file: for last words."""
    return _stderr


def _turn_stderr(to: int) -> None:
    with suppress(AttributeError, OSError, ValueError):  # Python has none, or it is closed
        sys.stderr.flush()
    os.dup2(to, 2)


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
