"""Files that are whole or absent: written to a temporary name, synced, renamed. And paths that stay in their folder."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from jettison.errors import JettisonError

PIECE = 1 << 26  # bytes of a tensor that are read back at once


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and rename it to ``path``.

    Raises JettisonError if the disk is full or the file cannot be written; ``path`` is then as it was before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors creates files that only their owner can read
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise JettisonError(
            f"cannot write {path}: {error}. Nothing was lost: free space or choose another folder, then run again."
        ) from error


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


def read_json(path: Path) -> dict:
    """Raises JettisonError if the file is missing or is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise JettisonError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise JettisonError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise JettisonError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


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
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where measurements and synthetic data are kept: $JETTISON_CACHE, else $XDG_CACHE_HOME/jettison."""
    if configured := os.environ.get("JETTISON_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jettison"
