"""``inspect``: what a model consists of, and what each runtime would say to it. No weights are read."""

import math
from pathlib import Path
from typing import Any

from jettison.encodings.grid import Grid
from jettison.formats.format import format_name, format_of
from jettison.formats.packed import read_grids, read_reordered
from jettison.formats.runtimes import Runtime, find_runtime, illegal, runtime_names
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder

FILES = ("gguf", "onnx")  # formats of one file; a runtime that has only these reads no folder


def inspect(model: str | Path) -> dict[str, Any]:
    """List the matrices of a model, and say which runtimes would load it.

    model: ``scribe``, a folder, a GGUF file or a hub id.

    Returns these keys:

    - ``model``, ``family``, ``format`` (of the checkpoint), ``license``, ``parameters``, ``bytes`` of all tensors.
    - ``matrices``: for each its ``name``, ``role``, ``shape``, ``type`` as stored, ``bits`` per weight, ``bytes``.
      A head that is tied to the embedding has 0 bytes of its own.
    - ``other_bytes``: of everything that is no matrix, such as norms.
    - ``runtimes``: name -> ``title``, ``loads`` (None: runtimes.yaml does not say it), and ``reasons`` if not.

    Raises UsageError if there is no such model, JettisonError for a quantization that cannot be read.
    """
    source = ModelFolder(model)
    grids = read_grids(source)
    seen: set[str] = set()
    stored = grids | read_reordered(source)
    matrices = [_row(source, linear, stored.get(linear.name), seen) for linear in source.anatomy]
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
    return format_name(source)


def _row(source: ModelFolder, linear: Linear, grid: Grid | None, seen: set[str]) -> dict[str, Any]:
    """Describe a matrix. seen: tensors of earlier matrices; their bytes are not counted again."""
    parts = ("weight",)
    if grid is not None and not source.in_file:
        parts = tuple(format_of(source).stored(linear.rows, linear.columns, grid))
    stored = [source.locate(f"{linear.name}.{part}") for part in parts]
    count = math.prod(source.checkpoint.shape(stored[0][0]))  # a tensor may stack several matrices
    sizes = [source.checkpoint.bytes_of(tensor) for tensor, _, _ in stored]
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


def _verdict(runtime: Runtime, source: ModelFolder, grids: dict[str, Grid]) -> dict[str, Any]:
    """Say whether a runtime loads a model as it is stored; None if runtimes.yaml does not say it."""
    name, known = _format(source), [format.name for format in runtime.formats]
    loads, reasons = True, []
    if source.replaced and runtime.name != "jettison":
        loads, reasons = False, ["modules of the model are replaced, which only jettison.load rebuilds"]
    elif name not in known and set(known) <= set(FILES):
        loads, reasons = False, [f"it reads {' and '.join(known)}, not {name}"]
    elif name in known and source.quantization and not source.in_file:
        reasons = illegal(runtime, source.anatomy, grids, name)
        loads = not reasons
    elif name not in known and name != "safetensors" and runtime.name != "jettison":
        loads, reasons = None, [f"runtimes.yaml does not say whether it loads {name}"]
    return {"title": runtime.title, "loads": loads, "reasons": reasons}
