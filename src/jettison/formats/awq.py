"""AWQ checkpoints in the packing GEMM, and those of auto-round in it. This format is only read.

A matrix (out, in) of 4 bits is stored transposed: ``qweight`` (in, out / 8) and ``qzeros`` (groups, out / 8), int32,
eight codes of neighbouring outputs in a word in the order of ``ORDER``; ``scales`` (groups, out).

Source: AutoAWQ, which writes these tensors (awq/utils/packing_utils.py).
"""

from collections.abc import Mapping
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.quantized import QuantizedWeight, unpack
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import Reader
from jettison.formats.gptq import METHODS, SCALE
from jettison.formats.parts import SCALE_TYPES
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder

__all__ = ["SCALE", "detects", "read_grids", "read_weight", "stored"]

BITS, IN_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output, of eight, whose code lies at each place of a word
PLACES = [ORDER.index(output) for output in range(IN_WORD)]
PARTS = ("qweight", "qzeros", "scales")


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in AWQ's packing GEMM."""
    method = quantization.get("quant_method")
    rounded = method in METHODS and quantization.get("packing_format") == "auto_round:auto_awq"
    return rounded or (method == "awq" and str(quantization.get("version", "gemm")).lower() == "gemm")


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the tensors that hold a weight, on the meta device."""
    groups = grid.groups(columns)
    shapes = {"qweight": (columns, rows // IN_WORD), "qzeros": (groups, rows // IN_WORD)}
    parts = {name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in shapes.items()}
    return parts | {"scales": torch.empty(groups, rows, dtype=grid.scale_dtype, device="meta")}


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every packed linear.

    Raises JettisonError for tensors whose shapes and types do not belong together.
    """
    packed = [linear for linear in source.anatomy if source.has(f"{linear.name}.qweight")]
    return {linear.name: _grid(source, linear) for linear in packed}


def _grid(source: ModelFolder, linear: Linear) -> Grid:
    tensors = {part: source.locate(f"{linear.name}.{part}")[0] for part in PARTS}
    shapes = {part: source.checkpoint.shape(tensor) for part, tensor in tensors.items()}
    kinds = {part: source.checkpoint.dtype(tensor) for part, tensor in tensors.items()}
    groups = shapes["scales"][0] if len(shapes["scales"]) == 2 else 0
    fits = groups and linear.columns % groups == 0 and linear.rows % IN_WORD == 0 and kinds["scales"] in SCALE_TYPES
    if fits:
        size = WHOLE_ROW if groups == 1 else linear.columns // groups
        grid = UniformGrid(BITS, size, False, SCALE_TYPES[kinds["scales"]])
        expected = {part: tuple(value.shape) for part, value in stored(linear.rows, linear.columns, grid).items()}
        if shapes == expected and kinds["qweight"] == kinds["qzeros"] == "I32":
            return grid
    raise JettisonError(
        f"{source.folder}: {linear.name} has tensors {kinds} of shapes {shapes}, which a weight of {linear.rows} x "
        f"{linear.columns} in AWQ's 4 bits does not have"
    )


def _codes(words: torch.Tensor) -> torch.Tensor:
    """Unpack words (n, out / 8). Returns (out, n) uint8."""
    places = unpack(words, BITS, words.shape[1] * IN_WORD).unflatten(1, (-1, IN_WORD))
    return places[..., PLACES].flatten(1).T.contiguous()


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    """Read a packed linear, or some of its rows."""
    scale, zero = read(f"{name}.scales").T[rows].contiguous(), _codes(read(f"{name}.qzeros"))[rows]
    return QuantizedWeight(_codes(read(f"{name}.qweight"))[rows], scale, zero, grid)
