"""Writes files that are whole or absent, checks paths and folders, and hashes the content of files.

- Every file is written to a unique temporary name, synced and renamed.
- ``read_bytes`` reads only regular files up to a size limit. A pipe or a device may never end.
- ``content_digest`` is BLAKE2b of all bytes of a file, cached until the file's stat changes.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jettison.core.caches import cache_folder, in_cache
from jettison.core.errors import JettisonError, UsageError

TEMPORARY = ".tmp"
RACY = 1.0  # seconds; a file that changed this recently may change again without a change of its times


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is whole or absent: under a temporary name beside ``path``, synced, then renamed.

    write: called with the temporary path.
    Raises JettisonError if the disk is full or the file cannot be written; ``path`` is then unchanged.
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
    """Delete the temporary files of killed runs in ``folder`` and below. The caller must hold the folder's lock."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8.

    Half a surrogate pair, as in names of files that are not UTF-8, becomes an escape such as \\udce9, which JSON reads
    back unchanged.
    """
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace", newline="\n"))


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON; see ``write_atomic``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_regular(path: Path, limit: int | None = None) -> None:
    """Check that ``path`` is a regular file of at most ``limit`` bytes.

    Raises JettisonError if it is missing, too large, a folder, a pipe or a device (which may never end).
    """
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
    """Return the bytes of all paths that are files. Others, such as broken links in a folder, are skipped."""
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file. Raises JettisonError as ``check_regular`` does, and if the file cannot be read."""
    check_regular(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error


def writable_folder(path: Path) -> Path:
    """Make a folder if it is missing, and return it. Raises UsageError if it is not a folder that can be written to."""
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
    try:  # write a file: permissions do not stop root, but /proc and a read-only disk do
        allowed = os.access(path, os.W_OK | os.X_OK)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError:
        allowed = False
    if not allowed:
        raise UsageError(f"folder {path} cannot be written to: choose another one")
    return path


def check_folder(path: str | Path, run: str | None = None, also: Collection[str] = ()) -> Path:
    """Check a folder as ``writable_folder`` does, before the work begins, and remove the folders that this made.

    run: name of a file that an earlier run leaves, which this run continues; None if any content is allowed.
    also: names of what may be there without ``run``, since a stage before it leaves it.
    Raises UsageError also for a folder that is not empty and lacks ``run``.
    """
    if not str(path):
        raise UsageError("the name of the folder is empty: give one")
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        writable_folder(path)
        others = [name for name in os.listdir(path) if not name.startswith(".") and name not in also]
        if run and others and not (path / run).exists():
            raise UsageError(f"folder {path} is not empty and holds no run of Jettison: choose another one")
        return path
    finally:
        for folder in missing:
            with contextlib.suppress(OSError, ValueError):
                folder.rmdir()


def writable_file(path: Path) -> Path:
    """Make the folder of a file if it is missing, and return ``path``. Raises UsageError if it cannot be written."""
    if not path.name or os.path.isdir(path):
        raise UsageError(f"{str(path)!r} is not the name of a file")
    if len(os.fsencode(path.name)) > 255:
        raise UsageError(f"the name of the file {path.name[:40]}... is too long")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is a pipe, a device or a link to nothing; a file is needed")
    writable_folder(path.parent)
    return path


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``. Raises JettisonError if it is outside the folder: a checkpoint must not read there."""
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
    """Return a hash of the parts, 16 hex digits. Parts are strings, bytes, or JSON values."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return SHA-256 of a file, 64 hex digits. Raises JettisonError if it cannot be read."""
    return _hash(path, "sha256")


def content_digest(path: Path) -> str:
    """Return BLAKE2b of all bytes of a file, 64 hex digits. Raises JettisonError if it cannot be read.

    The digest is cached by device, inode, size, mtime_ns and ctime_ns. An edit in place is noticed even if the
    modification time is reset, because no program can reset the change time.
    """
    before = _status(path)
    key = "-".join(str(getattr(before, f"st_{part}")) for part in ("dev", "ino", "size", "mtime_ns", "ctime_ns"))
    kept = cache_folder() / "digests" / key
    with contextlib.suppress(JettisonError, ValueError):
        known, own = read_bytes(kept, 1000).decode("ascii").split()
        if own == digest(key, known):
            return known
    result = _hash(path, lambda: hashlib.blake2b(digest_size=32))
    after = _status(path)
    # A file that changed while it was hashed, or just before, is not cached.
    steady = (before.st_mtime_ns, before.st_ctime_ns, before.st_size) == (
        after.st_mtime_ns, after.st_ctime_ns, after.st_size,
    )  # fmt: skip
    if steady and time.time() - max(after.st_mtime, after.st_ctime) > RACY:
        with contextlib.suppress(JettisonError):
            write_text(kept, f"{result} {digest(key, result)}\n")
    return result


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
