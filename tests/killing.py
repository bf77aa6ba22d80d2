"""Kills at chosen writes: in this process, where every file of a run becomes whole in os.replace; and by SIGKILL in a
process that may die, at anything that is done to a file, and in the middle of it."""

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    assert calls > 3, "hardly a write was seen: no kill would test anything"
    return calls


SOME = 4  # writes of a run that it is killed at in the fast tests; in the slow ones at every one
some_writes = pytest.mark.parametrize("most", [SOME, pytest.param(None, marks=pytest.mark.slow, id="every")])


def spread(writes: int, most: int | None) -> list[int]:
    """So many of the writes, the first and the last among them; None for all."""
    if most is None:
        return list(range(writes))
    return sorted({round(part * (writes - 1) / (most - 1)) for part in range(most)})


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


class Trap:
    """Counts what is done to files below ``folder``, and at event ``at`` kills the process. mode: how much of a write
    happens before that: ``none``, ``half``, or ``zeros`` in its place."""

    def __init__(self, folder: Path, at: int | None = None, mode: str = "none"):
        self.folder, self.at, self.mode, self.events = str(folder), at, mode, []

    def inside(self, path: Any) -> bool:
        return isinstance(path, str | Path) and os.path.abspath(path).startswith(self.folder)

    def event(self, what: str, path: Any) -> bool:
        """Whether it is now."""
        self.events.append(f"{what} {Path(path).name if Path(path).suffix != '.tmp' else 'a temporary file'}")
        return len(self.events) - 1 == self.at

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def set(self) -> None:
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
        if self.mode == "zeros":
            return bytes(len(data))
        return data[: len(data) // 2] if self.mode == "half" else data[:0]


class Handle:
    """A file that is written to, and dies in the middle of it."""

    def __init__(self, real, path: Path, trap: Trap):
        self._real, self._path, self._trap = real, path, trap

    def write(self, data):
        if self._trap.event("write", self._path):
            self._real.write(self._trap.part(data) if isinstance(data, bytes) else data[: len(data) // 2])
            self._real.flush()
            self._trap.die()
        return self._real.write(data)

    def truncate(self, *arguments):
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


def check_kills(run, folder, most):
    """``run(out)``, killed at ``most`` of its writes and called again, ends with the bytes of a whole run. Caches make
    the number of writes vary by a few, so a run may be over before its last write."""
    run(folder / "whole")
    killed = 0
    for write in spread(count_writes(lambda: run(folder / "counted")), most):
        out = folder / f"killed-{write}"
        try:
            with killed_at(write):
                run(out)
            killed += 1
        except pytest.fail.Exception:  # it was over
            pass
        run(out)
        assert files_of(out) == files_of(folder / "whole"), f"killed at write {write}"
    assert killed >= most // 2
