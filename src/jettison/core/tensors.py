"""Writes files of tensors, which are whole or absent as in ``files``."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jettison.core.files import write_atomic

PIECE = 1 << 26  # bytes of a tensor that are read back at a time


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    ready: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Write a safetensors file. It is read back and compared before it gets its name. Same tensors give same bytes.

    ready: called with the temporary name of the file when it is complete.
    Raises JettisonError as ``write_atomic`` does, and if the file reads back differently.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, dict(metadata or {"format": "pt"}))
        _sort_metadata(temporary)
        for pieces in _grouped(contiguous):
            if (name := _differing(temporary, contiguous, pieces)) is not None:
                raise OSError(f"{name} reads back differently from what was written")
        ready(temporary)

    write_atomic(path, write)


def _sort_metadata(path: Path) -> None:
    """Sort the entries of the metadata, because safetensors writes them in an order that changes from run to run."""
    with open(path, "rb+") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:  # other escapes than those of safetensors
            raise OSError(f"{len(text)} bytes of header do not fit into {length}")
        handle.seek(8)
        handle.write(text.ljust(length))


def _grouped(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[tuple[str, int, int]]]:
    """Yield groups of pieces of tensors, of about ``PIECE`` bytes each: name, first row, end."""
    group, size = [], 0
    for name, tensor in tensors.items():
        rows = len(tensor) if tensor.dim() else 1
        step = max(1, PIECE * rows // max(1, tensor.nbytes))
        for first in range(0, max(1, rows), step):
            end = min(first + step, rows)
            group.append((name, first, end))
            size += tensor.nbytes * (end - first) // max(1, rows)
            if size >= PIECE:
                yield group
                group, size = [], 0
    if group:
        yield group


def _differing(path: Path, tensors: Mapping[str, torch.Tensor], pieces: list[tuple[str, int, int]]) -> str | None:
    """Return the name of a tensor of which a stored piece differs; None if there is none.

    The file is opened for each group of pieces, since pages that were read stay in memory until it is closed.
    """
    with safe_open(path, framework="pt") as handle:
        for name, first, end in pieces:
            tensor, stored = tensors[name], handle.get_slice(name)
            if tuple(stored.get_shape()) != tuple(tensor.shape):
                return name
            actual = stored[first:end] if tensor.dim() else handle.get_tensor(name)
            expected = tensor[first:end] if tensor.dim() else tensor
            if actual.dtype != expected.dtype or not torch.equal(_bytes(actual), _bytes(expected)):
                return name
    return None


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().reshape(-1).view(torch.uint8)
