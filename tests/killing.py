"""Kills at chosen writes, in two ways.

- In this process: an exception at a call of os.replace, by which every file of a run is completed.
- In a child process: SIGKILL at any operation on a file, and in the middle of it (``Trap``).
"""

import builtins
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """Stands in for SIGKILL: no code may catch it."""


def count_writes(work: Callable[[], object]) -> int:
    """Call ``work`` and return its number of writes, that is, of calls of os.replace."""
    real, calls = os.replace, 0

    def counting(*arguments):
        nonlocal calls
        calls += 1
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counting)
        work()
    assert calls > 3, "hardly a write was seen: no kill would test anything"
    return calls


SOME = 4  # fast tests kill a run at so many of its writes; slow tests kill it at every one
some_writes = pytest.mark.parametrize("most", [SOME, pytest.param(None, marks=pytest.mark.slow, id="every")])


def spread(writes: int, most: int | None) -> list[int]:
    """Return the numbers of ``most`` writes, the first and the last among them; None for all."""
    if most is None:
        return list(range(writes))
    return sorted({round(part * (writes - 1) / (most - 1)) for part in range(most)})


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """Raise Killed in place of write number ``write``, from 0, and check that it ends the work inside the context."""
    real, writes_left = os.replace, write

    def dying(*arguments):
        nonlocal writes_left
        if writes_left == 0:
            raise Killed
        writes_left -= 1
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", dying)
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files of a run by name, except journals and logs, which hold times, and half-written files."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if not name.endswith((".jsonl", ".log", ".tmp"))}
    return {name: path.read_bytes() for name, path in kept.items()}


class Trap:
    """Counts operations on files below ``folder``, and kills the process at event number ``at``.

    mode: what a write still writes before the kill: ``none``, ``half`` of the data, or ``zeros`` in place of all.
    """

    def __init__(self, folder: Path, at: int | None = None, mode: str = "none"):
        self.folder, self.at, self.mode, self.events = str(folder), at, mode, []

    def inside(self, path: Any) -> bool:
        """Return whether ``path`` lies below the folder."""
        return isinstance(path, str | Path) and os.path.abspath(path).startswith(self.folder)

    def event(self, what: str, path: Any) -> bool:
        """Note an event and return whether to kill the process at it."""
        self.events.append(f"{what} {Path(path).name if Path(path).suffix != '.tmp' else 'a temporary file'}")
        return len(self.events) - 1 == self.at

    def die(self) -> None:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def set(self) -> None:
        """Replace the functions of ``os``, ``io.open`` and ``open`` that change files."""
        for name in ("replace", "rename", "unlink", "remove", "truncate"):
            setattr(os, name, self._before(name, getattr(os, name)))
        real_sync, real_open, real_os_open, real_os_write = os.fsync, io.open, os.open, os.write

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.inside(path) and self.event("fsync", path):
                self.die()
            real_sync(descriptor)

        def opened(path, mode="r", *arguments, **options):
            handle = real_open(path, mode, *arguments, **options)
            if self.inside(path) and set(mode) & set("wax+"):
                if self.event("open", path):
                    self.die()
                return Handle(handle, Path(path), self)
            return handle

        def os_open(path, flags, *arguments, **options):
            descriptor = real_os_open(path, flags, *arguments, **options)
            if self.inside(path) and flags & (os.O_WRONLY | os.O_RDWR) and self.event("open", path):
                self.die()
            return descriptor

        def os_write(descriptor: int, data) -> int:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.inside(path) and self.event("write", path):
                real_os_write(descriptor, self.part(data))
                self.die()
            return real_os_write(descriptor, data)

        os.fsync, os.open, os.write, io.open, builtins.open = fsync, os_open, os_write, opened, opened

    def _before(self, name: str, real: Callable) -> Callable:
        def call(path, *arguments, **options):
            if self.inside(path) and self.event(name, (arguments or [path])[0] if "re" in name[:2] else path):
                self.die()
            return real(path, *arguments, **options)

        return call

    def part(self, data):
        """Return the part of ``data`` that is still written."""
        if self.mode == "zeros":
            return bytes(len(data))
        return data[: len(data) // 2] if self.mode == "half" else data[:0]


class Handle:
    """A file open for writing, whose writes are events of a trap."""

    def __init__(self, real, path: Path, trap: Trap):
        self._real, self._path, self._trap = real, path, trap

    def write(self, data):
        """Write ``data``, or part of it before a kill."""
        if self._trap.event("write", self._path):
            self._real.write(self._trap.part(data) if isinstance(data, bytes) else data[: len(data) // 2])
            self._real.flush()
            self._trap.die()
        return self._real.write(data)

    def truncate(self, *arguments):
        """Truncate the file, or kill the process before that."""
        if self._trap.event("truncate", self._path):
            self._trap.die()
        return self._real.truncate(*arguments)

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def __enter__(self):
        self._real.__enter__()
        return self

    def __exit__(self, *reason):
        return self._real.__exit__(*reason)

    def __iter__(self):
        return iter(self._real)


def check_kills(run, folder, most, start=None):
    """Check that ``run(out)``, killed at ``most`` of its writes (None: at each) and called again, gives the bytes of a
    whole run, which is left in ``folder / "whole"``.

    start: a folder whose copy every run works in; None for a folder that is new.
    Caches make the number of writes vary by a few, so a run may end before the write at which it should be killed.
    """
    whole = _copy(start, folder / "whole")
    writes = spread(count_writes(lambda: run(whole)), most)
    killed = 0
    for write in writes:
        out = _copy(start, folder / f"killed-{write}")
        try:
            with killed_at(write):
                run(out)
            killed += 1
        except pytest.fail.Exception:  # the run ended before that write
            pass
        run(out)
        assert files_of(out) == files_of(whole), f"killed at write {write}"
        shutil.rmtree(out)
    assert killed >= len(writes) // 2


def _copy(start, out):
    """Copy the folder ``start`` to ``out``, if there is one. Returns ``out``."""
    if start is not None:
        shutil.copytree(start, out)
    return out
