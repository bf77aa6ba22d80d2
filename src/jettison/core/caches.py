"""The cache folder. It holds results that can be computed again, and none is used unless its digest is right."""

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from jettison.core.progress import say

PROBE = 4096  # bytes that are written to test the folder

_used: dict[Path, Path] = {}  # a cache folder as it is configured -> the folder that is used for it


def cache_folder() -> Path:
    """Return the cache folder: $JETTISON_CACHE, else $XDG_CACHE_HOME/jettison, else ~/.cache/jettison.

    It is made if it is missing. If it cannot be written to, a note says so once, and a temporary folder replaces it
    until the process ends.
    """
    named = _named()
    if named not in _used:
        _used[named] = _usable(named)
    return _used[named]


def cache_is_kept() -> bool:
    """Whether files in the cache folder are kept when the process ends."""
    return cache_folder() == _named()


def in_cache(path: Path) -> bool:
    """Whether a path is in the configured cache folder."""
    return _named() in path.absolute().parents


def temporary_folder(prefix: str) -> Path:
    """Make a new folder that is deleted when this process ends. Raises OSError if it cannot be made."""
    folder, owner = Path(tempfile.mkdtemp(prefix=prefix)), os.getpid()
    # A fork runs this too and must not delete the folder.
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder


def _named() -> Path:
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jettison")
    path = os.path.expanduser(os.environ.get("JETTISON_CACHE") or default)
    return Path(os.devnull) / "no home folder" if path.startswith("~") else Path(path).absolute()


def _usable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as probe:  # fails also if the disk is full
            probe.write(bytes(PROBE))
            probe.flush()
        return cache
    except FileExistsError:
        reason = "it is a file"
    except OSError as error:
        reason = error.strerror
    say(
        f"note: the cache folder {cache} cannot be written to ({reason}), so its contents are computed again each "
        "time. Name another one with $JETTISON_CACHE"
    )
    with contextlib.suppress(OSError):
        return temporary_folder("jettison-cache-")
    return cache
