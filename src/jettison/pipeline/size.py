"""The size of a checkpoint in bytes and bits per weight, counted from its files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jettison.core.files import size_of
from jettison.encodings.grid import Grid
from jettison.formats.format import format_of
from jettison.formats.packed import read_grids, read_reordered
from jettison.formats.peft import adapter_bytes
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder


def measure_size(folder: str | Path) -> dict[str, Any]:
    """Measure the size of a checkpoint.

    Returns these keys:

    - ``bytes``: of all tensors, adapter included; ``disk_bytes``: of the files that hold them.
    - ``bits_per_weight``: over all linears but the embedding, with scales, zero points and adapter;
      ``bits_per_weight_without_adapter``.
    - ``adapter_bits_per_weight``, with an adapter: over the linears that have a LoRA adapter.
    - ``quantized_linears``, of a quantized checkpoint: how many linears are packed.
    """
    source = ModelFolder(folder)
    adapter = adapter_bytes(source.folder)
    linears = [linear for linear in source.anatomy if "embed" not in linear.roles]
    grids = read_grids(source) | read_reordered(source)
    bits = 8 * sum(_stored_bytes(source, linear, grids.get(linear.name)) for linear in linears)
    weights = sum(linear.weights for linear in linears)
    files = source.checkpoint.file_bytes + size_of(source.folder.glob("adapter/*.safetensors"))
    size = {
        "bytes": source.checkpoint.tensor_bytes + adapter,
        "disk_bytes": files,
        "bits_per_weight": round((bits + 8 * adapter) / weights, 4),
        "bits_per_weight_without_adapter": round(bits / weights, 4),
    }
    if adapter:
        size["adapter_bits_per_weight"] = round(8 * adapter / _adapted_weights(source, linears), 4)
    if source.quantization:
        size["quantized_linears"] = len(grids)
    return size


def _stored_bytes(source: ModelFolder, linear: Linear, grid: Grid | None) -> int:
    """Count the bytes of a linear's tensors; of experts that share one tensor, the linear's part of it."""
    total = 0
    for part in format_of(source).stored(linear.rows, linear.columns, grid) if grid else ("weight",):
        tensor, expert, _ = source.locate(f"{linear.name}.{part}")
        stored = source.checkpoint.bytes_of(tensor)
        total += stored if expert is None else linear.weights * stored // _numel(source, tensor)
    return total


def _numel(source: ModelFolder, tensor: str) -> int:
    total = 1
    for size in source.checkpoint.shape(tensor):
        total *= size
    return total


def _adapted_weights(source: ModelFolder, linears: Iterable[Linear]) -> int:
    from jettison.formats.peft import adapted_names

    names = adapted_names(source.folder)
    return sum(linear.weights for linear in linears if linear.name in names)
