"""Keeps weights beside a checkpoint in the order in which the CPU kernels read them, so that loading maps one file.

- ``DIR/.tiles/model.safetensors`` holds all tensors of a loaded model whose packed linears are tiled.
- The file may be deleted at any time. It is made again if the checkpoint, the dtype of dense weights or the layout of
  tiles has changed, or if its content is not what was written.
- If the checkpoint's folder must not be written to, the file is in the cache folder.
- Tensors start at multiples of 64 bytes, as the loads of the kernels need.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.core.files import digest
from jettison.core.kept import is_kept, keep, places, write_first
from jettison.core.progress import say, waiting
from jettison.encodings.grid import Grid
from jettison.formats.packed import load_packed, read_grids, share_head
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.dense import with_defaults
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PARTS, PackedLinear, QuantizedLinear, TiledLinear, tile_linears
from jettison.kernels.tiles import LAYOUT, Tiling

FILE = Path(".tiles") / "model.safetensors"
ALIGNED = 64  # bytes
NAMES = {
    torch.uint8: "U8", torch.int32: "I32", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
}  # fmt: skip


@waiting("loading the model")
def load_tiled(source: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """Load a model as ``load_packed`` does, with linears tiled for the CPU kernels, from a file beside the checkpoint.

    The file is made again if it is missing, damaged, or does not belong to this checkpoint, dtype and layout. If it
    cannot be written, a note says so and the model is tiled in memory.
    """
    name = source.fingerprint()
    key, paths = digest(name, str(dtype), LAYOUT), places(source.folder, FILE, "tiles", name)
    for path in paths:
        if stored := _opened(path, key):
            return _read(source, dtype, stored)
    model = load_packed(source, dtype)
    tile_linears(model)
    try:
        path = write_first(paths, partial(write_tiled, model, key=key))
    except JettisonError as error:
        say(f"note: without packed weights beside the checkpoint, loading takes longer: {error}")
        return model
    del model  # the mapped file takes its place
    source.checkpoint.release()
    return _read(source, dtype, Checkpoint(path.parent, [path]))


def _opened(path: Path, key: str) -> Checkpoint | None:
    """The mapped file if it was written under this key, else None. safetensors compares its size with its header."""
    if not is_kept(path, key):
        return None
    try:
        stored = Checkpoint(path.parent, [path])
    except JettisonError:  # another process has replaced it meanwhile
        return None
    return stored if stored.metadata.get("key") == key else None


def write_tiled(model: nn.Module, path: Path, key: str) -> None:
    """Write all tensors of a tiled model to ``path``, and seal the file with ``key``.

    Raises JettisonError if the file cannot be written.
    """
    tensors, shared, seen = {}, {}, {}  # shared: name of a repeated tensor -> the name that it is stored under
    for name, tensor in _tensors(model):
        first = seen.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor.detach().contiguous()
        else:
            shared[name] = first
    keep(path, key, lambda file: _write(file, tensors, {"key": key, "shared": json.dumps(shared)}))


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and stored buffers, and all buffers of packed linears, by name."""
    for path, module in model.named_modules():
        tensors = dict(module._parameters)
        tensors |= {name: module._buffers[name] for name in module._buffers.keys() - module._non_persistent_buffers_set}
        if isinstance(module, QuantizedLinear):
            tensors |= dict(module.named_buffers())
        for name, tensor in tensors.items():
            if tensor is not None:
                yield f"{path}.{name}", tensor


def _write(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Tensors of odd size come last: before others they would shift these from their multiples of 64 bytes.
    ordered = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNED != 0)
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in ordered:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)  # 8: the length of the header, which stands before it
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            handle.write(memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy()))


def _read(source: ModelFolder, dtype: torch.dtype, stored: Checkpoint) -> nn.Module:
    model = source.new_skeleton()
    shared = json.loads(stored.metadata["shared"])
    value = lambda name: stored.read(shared.get(name, name)) if shared.get(name, name) in stored else None
    embedding = model.get_input_embeddings()
    for name, grid in read_grids(source).items():
        module = model.get_submodule(name)
        if module is embedding:
            continue
        rows, columns = module.weight.flatten(1).shape
        model.set_submodule(name, _linear(value, name, rows, columns, grid))
    share_head(model, source, dtype)
    seen: dict[str, nn.Parameter] = {}
    for path, owner in model.named_modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None and parameter.device.type == "meta":
                first = shared.get(f"{path}.{name}", f"{path}.{name}")
                if first not in seen:
                    seen[first] = nn.Parameter(stored.read(first))
                owner._parameters[name] = seen[first]
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                full = f"{path}.{name}" if path else name
                owner._buffers[name] = stored.read(shared.get(full, full))
    return with_defaults(model, source, dtype)


def _linear(
    value: Callable[[str], torch.Tensor | None], name: str, rows: int, columns: int, grid: Grid
) -> QuantizedLinear:
    """A linear from its stored tensors, which ``value`` reads: tiles, or the packed parts of a checkpoint."""
    tiles, zero, bias = (value(f"{name}.{part}") for part in ("tiles", "tile_zero", "bias"))
    if tiles is None:
        return PackedLinear(grid, columns, *(value(f"{name}.{part}") for part in PARTS), bias=bias)
    tilings = (Tiling.of(grid, rows, columns, sparse) for sparse in (False, True))
    tiling = next(option for option in tilings if option and option.tiles_shape == tuple(tiles.shape))
    return TiledLinear(grid, tiling, tiles, zero, bias)


def read_linears(
    path: Path, key: str, linears: Mapping[str, tuple[int, int, Grid]]
) -> dict[str, QuantizedLinear] | None:
    """Read linears from a file that ``write_tiled`` wrote.

    linears: name -> (rows, columns, grid).
    Returns the linears by name; None if the file is missing, damaged, or was written under another key.
    """
    stored = _opened(path, key)
    if stored is None:
        return None
    value = lambda name: stored.read(name) if name in stored else None
    return {name: _linear(value, name, *linears[name]) for name in linears}
