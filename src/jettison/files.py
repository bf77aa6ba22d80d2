"""Files that are whole or absent, inputs that are read with care, and the content of a file as its identity.

- Every file is written to a unique temporary name, synced and renamed.
- JSON and YAML are read from regular files of a sensible size; nesting and aliases have limits.
- ``content_digest`` is BLAKE2b of all bytes of a file, remembered as long as the file's stat stays the same.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from jettison.caches import cache_folder, in_cache
from jettison.errors import JettisonError, UsageError

PIECE = 1 << 26  # bytes of a tensor that are read back at once
TEMPORARY = ".tmp"
JSON_LIMIT, YAML_LIMIT = 1 << 28, 1 << 20  # bytes
YAML_NODES, YAML_DEPTH = 100_000, 64  # of a document with its aliases written out
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
    """Delete what killed runs left half written in ``folder``. Only for whoever holds the folder's lock."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Same tensors, same bytes. It is read back and compared before it gets its name."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, dict(metadata or {"format": "pt"}))
        for name, tensor in contiguous.items():
            if not _reads_back(temporary, name, tensor):
                raise OSError(f"{name} reads back differently from what was written")

    write_atomic(path, write)


def _reads_back(path: Path, name: str, tensor: torch.Tensor) -> bool:
    """Compares in pieces, the file opened for each: what was read of a file stays in memory until it is closed."""
    step = max(1, PIECE * len(tensor) // max(1, tensor.nbytes)) if tensor.dim() else 1
    for first in range(0, max(1, len(tensor)) if tensor.dim() else 1, step):
        with safe_open(path, framework="pt") as handle:
            stored = handle.get_slice(name)
            if tuple(stored.get_shape()) != tuple(tensor.shape):
                return False
            found = stored[first : first + step] if tensor.dim() else handle.get_tensor(name)
        meant = tensor[first : first + step] if tensor.dim() else tensor
        if found.dtype != meant.dtype or not torch.equal(_bytes(found), _bytes(meant)):
            return False
    return True


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().reshape(-1).view(torch.uint8)


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises JettisonError for anything else: a folder, a pipe, a device (which may never end), a file that is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
            raise JettisonError(f"{path} is a {kind}; a file is needed")
        if status.st_size > limit:
            raise JettisonError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise JettisonError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise JettisonError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> dict:
    """Raises JettisonError if the file is missing or is not a JSON object."""
    value = parse_json(read_bytes(path, JSON_LIMIT), str(path))
    if not isinstance(value, dict):
        raise JettisonError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """Raises JettisonError, which calls the text ``where``, if it is not JSON in UTF-8, or nested too deeply."""
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise JettisonError(f"{where} is not readable JSON: {error}") from error
    except RecursionError as error:
        raise JettisonError(f"{where} is not readable JSON: it is nested too deeply") from error


def read_yaml(path: Path, what: str) -> Any:
    """The YAML document of a file. what: how errors call it, such as ``recipe``. Raises UsageError."""
    try:
        text = read_bytes(path, YAML_LIMIT).decode("utf-8")
    except JettisonError as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not valid YAML: it is not UTF-8: {error}") from error
    return parse_yaml(text, f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Raises UsageError for what is not YAML, is nested too deeply, or is huge once its aliases are written out."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {}, 0, where)
        return loader.construct_document(node)
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply: at most {YAML_DEPTH} levels are read") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date such as 2000-13-01
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _count_nodes(node: yaml.Node, known: dict[int, int], depth: int, where: str) -> int:
    """How many nodes this one has, aliases written out. known: node id -> count, 0 while it is being counted."""
    if depth > YAML_DEPTH:
        raise UsageError(f"{where} is nested too deeply: at most {YAML_DEPTH} levels are read")
    if known.get(id(node)) == 0:
        raise UsageError(f"{where} refers to itself by an alias")
    if id(node) not in known:
        known[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in pairs for part in pair] if isinstance(node, yaml.MappingNode) else pairs
        known[id(node)] = 1 + sum(_count_nodes(part, known, depth + 1, where) for part in inner)
    if known[id(node)] > YAML_NODES:
        raise UsageError(f"{where} has more than {YAML_NODES:,} entries once its aliases are written out")
    return known[id(node)]


def writable_folder(path: Path) -> Path:
    """``path``, which is made if it is missing. Raises UsageError if it cannot be a folder that is written to."""
    if path.is_symlink() and not path.exists():
        raise UsageError(f"folder {path} is a link to {os.readlink(path)}, which does not exist")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{path} is a file; a folder is needed") from error
    except NotADirectoryError as error:
        raise UsageError(f"{path} lies under a file; a folder is needed") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot make folder {path}: {getattr(error, 'strerror', None) or error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"folder {path} cannot be written to: choose another one")
    return path


def writable_file(path: Path) -> Path:
    """``path``, whose folder is made if it is missing. Raises UsageError if no file can be written there."""
    if not path.name or path.is_dir():
        raise UsageError(f"{str(path)!r} is not the name of a file")
    if len(os.fsencode(path.name)) > 255:
        raise UsageError(f"the name of the file {path.name[:40]}... is too long")
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
    try:
        before = path.stat()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error
    key = "-".join(str(getattr(before, f"st_{part}")) for part in ("dev", "ino", "size", "mtime_ns", "ctime_ns"))
    kept = cache_folder() / "digests" / key
    with contextlib.suppress(JettisonError, ValueError):
        known, own = read_bytes(kept, 1000).decode("ascii").split()
        if own == digest(key, known):
            return known
    found = _hash(path, lambda: hashlib.blake2b(digest_size=32))
    after = path.stat()
    steady = (before.st_mtime_ns, before.st_ctime_ns, before.st_size) == (
        after.st_mtime_ns, after.st_ctime_ns, after.st_size,
    )  # fmt: skip
    if steady and time.time() - max(after.st_mtime, after.st_ctime) > RACY:
        with contextlib.suppress(JettisonError):
            write_text(kept, f"{found} {digest(key, found)}\n")
    return found


def _hash(path: Path, kind: Any) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise JettisonError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, kind).hexdigest()
    except OSError as error:
        raise JettisonError(f"cannot read {path}: {error}") from error
