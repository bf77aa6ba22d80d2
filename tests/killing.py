"""Kills at chosen writes: every file of a run becomes whole in os.replace, so that is where a kill matters."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def count_writes(work: Callable[[], object]) -> int:
    real, calls = os.replace, 0

    def counting(*arguments):
        nonlocal calls
        calls += 1
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counting)
        work()
    return calls


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """Write number ``write``, from 0, does not happen, and nothing after it."""
    real, left = os.replace, write

    def dying(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", dying)
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for its journal and its log, which say when, and what a kill left half written."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path for name, path in found.items() if not name.endswith(("journal.jsonl", ".log", ".tmp"))}
    return {name: path.read_bytes() for name, path in kept.items()}
