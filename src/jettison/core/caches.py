"""The folder of work that is kept because it can be done again. Nothing in it is trusted without a digest."""

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from jettison.core.progress import say

PROBE = 4096  # bytes

_used: dict[Path, Path] = {}  # a cache folder as it is named -> as it is used


def cache_folder() -> Path:
    """$JETTISON_CACHE, else $XDG_CACHE_HOME/jettison, else ~/.cache/jettison. It is made if it is missing.

    If it cannot be written to, that is said once, and a temporary folder takes its place until the process ends.
    """
    named = _named()
    if named not in _used:
        _used[named] = _usable(named)
    return _used[named]


def cache_is_kept() -> bool:
    """Whether what is written to the cache folder is still there when the process has ended."""
    return cache_folder() == _named()


def in_cache(path: Path) -> bool:
    return _named() in path.absolute().parents


def temporary_folder(prefix: str) -> Path:
    """A new folder that is deleted when this process ends. Raises OSError if there is no room for one."""
    folder, owner = Path(tempfile.mkdtemp(prefix=prefix)), os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))  # not by a fork
    return folder


def _named() -> Path:
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jettison")
    found = os.path.expanduser(os.environ.get("JETTISON_CACHE") or default)
    return Path(os.devnull) / "no home folder" if found.startswith("~") else Path(found).absolute()


def _usable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as probe:  # a full disk, too, is found here
            probe.write(bytes(PROBE))
            probe.flush()
        return cache
    except FileExistsError:
        reason = "it is a file"
    except OSError as error:
        reason = error.strerror
    say(
        f"note: the cache folder {cache} cannot be written to ({reason}), so what it would keep is found again each "
        "time. Name another one with $JETTISON_CACHE"
    )
    with contextlib.suppress(OSError):
        return temporary_folder("jettison-cache-")
    return cache
