"""``inspect``: what a model consists of, and what each runtime would say to it. No weights are read."""

from pathlib import Path
from typing import Any

from jettison.encodings.grid import Grid
from jettison.formats.format import READ, format_of, written_formats
from jettison.formats.packed import read_grids
from jettison.formats.runtimes import Runtime, find_runtime, illegal, runtime_names
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder


def inspect(model: str | Path) -> dict[str, Any]:
    """List the matrices of a model, and say which runtimes would load it.

    model: ``scribe``, a folder, a GGUF file or a hub id.

    Returns these keys:

    - ``model``, ``family``, ``format`` (of the checkpoint), ``license``, ``parameters``, ``bytes`` of all tensors.
    - ``matrices``: for each its ``name``, ``role``, ``shape``, ``type`` as stored, ``bits`` per weight, ``bytes``.
      A head that is tied to the embedding has 0 bytes of its own.
    - ``other_bytes``: of everything that is no matrix, such as norms.
    - ``runtimes``: name -> ``title``, ``loads``, and ``reasons`` if it does not.

    Raises UsageError if there is no such model, JettisonError for a quantization that cannot be read.
    """
    source = ModelFolder(model)
    grids = read_grids(source)
    seen: set[str] = set()
    matrices = [_row(source, linear, grids.get(linear.name), seen) for linear in source.anatomy]
    total = source.checkpoint.tensor_bytes
    return {
        "model": str(source.folder),
        "family": source.anatomy.family.name,
        "format": _format(source),
        "license": source.license,
        "parameters": source.anatomy.parameters,
        "bytes": total,
        "matrices": matrices,
        "other_bytes": total - sum(row["bytes"] for row in matrices),
        "runtimes": {name: _verdict(find_runtime(name), source, grids) for name in runtime_names()},
    }


def _format(source: ModelFolder) -> str:
    """Return the name of a checkpoint's format."""
    if source.in_file:
        return "gguf"
    if not source.quantization:
        return "safetensors"
    return format_of(source).__name__.rpartition(".")[2].replace("_", "-")


def _row(source: ModelFolder, linear: Linear, grid: Grid | None, seen: set[str]) -> dict[str, Any]:
    """Describe a matrix. seen: tensors of earlier matrices; their bytes are not counted again."""
    parts = ("weight",)
    if grid is not None and not source.in_file:
        parts = tuple(format_of(source).stored(linear.rows, linear.columns, grid))
    stored = [source.locate(f"{linear.name}.{part}") for part in parts]
    count, sizes = _rows_of(source, stored[0]), [source.checkpoint.bytes_of(tensor) for tensor, _, _ in stored]
    whole = sum(sizes) if stored[0][1] is None else sum(sizes) * linear.weights // count
    fresh = stored[0][1] is not None or stored[0][0] not in seen
    seen.update(tensor for tensor, _, _ in stored)
    kind = (
        source.checkpoint.kind(stored[0][0]) if source.in_file else str(grid or source.checkpoint.dtype(stored[0][0]))
    )
    return {
        "name": linear.name,
        "role": linear.role,
        "shape": [linear.rows, linear.columns],
        "type": kind,
        "bits": round(8 * whole / linear.weights, 4),
        "bytes": whole if fresh else 0,
    }


def _rows_of(source: ModelFolder, place: tuple) -> int:
    """Return the number of weights of the tensor that holds a matrix."""
    total = 1
    for size in source.checkpoint.shape(place[0]):
        total *= size
    return total


def _verdict(runtime: Runtime, source: ModelFolder, grids: dict[str, Grid]) -> dict[str, Any]:
    """Say whether a runtime loads a model as it is stored."""
    name, known = _format(source), [format.name for format in runtime.formats]
    reasons: list[str] = []
    if source.replaced and runtime.name != "jettison":
        reasons = ["modules of the model are replaced, which only jettison.load rebuilds"]
    elif name in known and not source.in_file and source.quantization:
        reasons = illegal(runtime, source.anatomy, grids, name)
    elif source.in_file or source.quantization:
        reads = runtime.name == "jettison" and name in (*READ, *written_formats())
        reasons = [] if reads or name in known else [f"the format {name} is not among {', '.join(known)}"]
    return {"title": runtime.title, "loads": not reasons, "reasons": reasons}
