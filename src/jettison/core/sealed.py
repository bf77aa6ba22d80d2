"""Files of tensors that a later run reuses. A file holds a digest of its content and is used only if that matches."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from jettison.core.files import digest
from jettison.core.tensors import write_tensors

SEAL = "seal"


def write_sealed(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file as ``write_tensors`` does, with a digest of names, types, shapes, values and metadata."""
    tensors, metadata = {name: tensors[name].detach().cpu().contiguous() for name in tensors}, dict(metadata or {})
    write_tensors(path, tensors, {SEAL: json.dumps({"digest": _digest(tensors, metadata), "metadata": metadata})})


def read_sealed(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Read the tensors and the metadata of a file that ``write_sealed`` wrote. Returns None if missing or damaged."""
    if not path.is_file():  # opening a pipe would wait for a writer
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            seal = json.loads((file.metadata() or {}).get(SEAL, "{}"))
        metadata = dict(seal.get("metadata", {}))
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RuntimeError):  # depends on the damage
        return None
    return (tensors, metadata) if seal.get("digest") == _digest(tensors, metadata) else None


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    parts: list[object] = [dict(metadata)]
    for name in sorted(tensors):
        value = tensors[name].reshape(-1).view(torch.uint8).numpy()
        parts.append([name, str(tensors[name].dtype), list(tensors[name].shape), hashlib.blake2b(value).hexdigest()])
    return digest(*parts)
