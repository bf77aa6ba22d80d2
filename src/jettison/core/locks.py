"""Locks of run folders. One process at a time works on a folder; the error of the others names that process."""

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jettison.core.errors import JettisonError
from jettison.core.files import remove_temporaries, writable_folder, write_text

LOCK, HOLDER = ".lock", ".lock-holder"


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made if it is missing, and remove temporary files of killed runs there.

    A process may take a lock that it already holds. The lock of a killed process is free.

    wait: whether to wait for the process that holds the lock, instead of raising.
    Raises JettisonError, which names the process that holds the lock; UsageError if the folder cannot be written to.
    """
    folder = writable_folder(folder)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise JettisonError(
            f"another process works on {folder}: {_holder(folder)}. Wait until it is done, or stop it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise JettisonError(f"cannot lock {folder}: {error}") from error
    try:
        if lock.lock_counter == 1:
            remove_temporaries(folder)
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            with contextlib.suppress(JettisonError):  # on a full disk the work itself fails and reports it
                write_text(folder / HOLDER, f"process {os.getpid()} on {socket.gethostname()}, {command}\n")
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip() or "its name is not known"
    except (OSError, ValueError):
        return "its name is not known"
