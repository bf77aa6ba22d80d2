"""Files that are whole or absent, folders that can be written to, and the content of a file as its identity.

- Every file is written to a unique temporary name, synced and renamed.
- ``read_bytes`` reads regular files of a sensible size: no pipe and no device, which may never end.
- ``content_digest`` is BLAKE2b of all bytes of a file, remembered as long as the file's stat stays the same.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jettison.core.caches import cache_folder, in_cache
from jettison.core.errors import JettisonError, UsageError

TEMPORARY = ".tmp"
RACY = 1.0  # seconds: a file that changed this recently may change again without its times showing it


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and rename it to ``path``.

    Raises JettisonError if the disk is full or the file cannot be written; ``path`` is then as it was before.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors creates files that only their owner can read
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        other = "name another cache folder with $JETTISON_CACHE" if in_cache(path) else "choose another folder"
        raise JettisonError(
            f"cannot write {path}: {error}. Nothing was lost: free space or {other}, then run again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed runs left half written in ``folder`` and below. For whoever holds the folder's lock."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8. Half a surrogate pair, as in names of files that are not UTF-8, becomes an escape such as \\udce9,
    which JSON reads back as it was."""
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace", newline="\n"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_regular(path: Path, limit: int | None = None) -> None:
    """Raises JettisonError unless ``path`` is a regular file of at most ``limit`` bytes: for a folder, a pipe, a device
    (which may never end), a file that is too large, and for none."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise JettisonError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise JettisonError(f"cannot read {path}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
        raise JettisonError(f"{path} is a {kind}; a file is needed")
    if limit is not None and status.st_size > limit:
        raise JettisonError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")


def size_of(files: Iterable[Path]) -> int:
    """Bytes of those of these that are files: what is listed in a folder may be a link that leads nowhere."""
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file. Raises JettisonError as ``check_regular`` does, and where the file cannot be read."""
    check_regular(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error


def writable_folder(path: Path) -> Path:
    """``path``, which is made if it is missing. Raises UsageError if it cannot be a folder that is written to."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UsageError(f"folder {path} is a link to {os.readlink(path)}, which does not exist")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{path} is a file; a folder is needed") from error
    except NotADirectoryError as error:
        raise UsageError(f"{path} lies under a file; a folder is needed") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot make folder {path}: {getattr(error, 'strerror', None) or error}") from error
    probe = path / f".{secrets.token_hex(8)}{TEMPORARY}"
    try:  # also as root, whom permissions do not stop, but /proc and a read-only disk do
        allowed = os.access(path, os.W_OK | os.X_OK)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError:
        allowed = False
    if not allowed:
        raise UsageError(f"folder {path} cannot be written to: choose another one")
    return path


def check_folder(path: str | Path, run: str | None = None) -> Path:
    """``path``, as ``writable_folder``, but what is missing of it is not left behind: for before the work begins.

    run: a file that an earlier run, which is continued, has left there. Raises UsageError for a folder that has others.
    """
    if not str(path):
        raise UsageError("the name of the folder is empty: give one")
    path = Path(path)
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    try:
        writable_folder(path)
        if run and not (path / run).exists() and any(not name.startswith(".") for name in os.listdir(path)):
            raise UsageError(f"folder {path} is not empty and holds no run of Jettison: choose another one")
        return path
    finally:
        for each in missing:
            with contextlib.suppress(OSError, ValueError):
                each.rmdir()


def writable_file(path: Path) -> Path:
    """``path``, whose folder is made if it is missing. Raises UsageError if no file can be written there."""
    if not path.name or os.path.isdir(path):
        raise UsageError(f"{str(path)!r} is not the name of a file")
    if len(os.fsencode(path.name)) > 255:
        raise UsageError(f"the name of the file {path.name[:40]}... is too long")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is a pipe, a device or a link to nothing; a file is needed")
    writable_folder(path.parent)
    return path


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. Raises JettisonError if that leaves the folder: a checkpoint must not read elsewhere."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise JettisonError(f"{folder} refers to {name!r}, which lies outside the folder")
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable. A no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(*parts: object) -> str:
    """16 hex digits that name this content. Parts are strings, bytes, or JSON values."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises JettisonError if it cannot be read."""
    return _hash(path, "sha256")


def content_digest(path: Path) -> str:
    """BLAKE2b of all bytes of a file, 64 hex digits. Raises JettisonError if it cannot be read.

    It is remembered in the cache folder by device, inode, size, mtime_ns and ctime_ns: an edit in place is seen even if
    the modification time is put back, since no program can put back the change time.
    """
    before = _status(path)
    key = "-".join(str(getattr(before, f"st_{part}")) for part in ("dev", "ino", "size", "mtime_ns", "ctime_ns"))
    kept = cache_folder() / "digests" / key
    with contextlib.suppress(JettisonError, ValueError):
        known, own = read_bytes(kept, 1000).decode("ascii").split()
        if own == digest(key, known):
            return known
    found = _hash(path, lambda: hashlib.blake2b(digest_size=32))
    after = _status(path)
    steady = (before.st_mtime_ns, before.st_ctime_ns, before.st_size) == (
        after.st_mtime_ns, after.st_ctime_ns, after.st_size,
    )  # fmt: skip
    if steady and time.time() - max(after.st_mtime, after.st_ctime) > RACY:
        with contextlib.suppress(JettisonError):
            write_text(kept, f"{found} {digest(key, found)}\n")
    return found


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error


def _hash(path: Path, kind: Any) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise JettisonError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, kind).hexdigest()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error
