"""GPTQ checkpoints, and those of auto-round in GPTQ's packing. This format is only read.

A matrix (out, in) is stored transposed: ``qweight`` (in · bits / 32, out) int32, packed along the inputs;
``scales`` (groups, out); ``qzeros`` (groups, out · bits / 32) int32, zero points minus 1, except in version 2
(``formats.gptq_v2``). Bits and group size of every matrix follow from the shapes.
``g_idx`` (in) names the group of every input. Where inputs were sorted by their activation (desc_act), a group is no
run of neighbours: such a matrix lies on no grid of Jettison's, so it is read dense and never kept packed.

Source: GPTQModel and auto-round, which write these tensors (auto_round_extension/torch: qlinear_torch_zp.py stores zero
points minus 1, qlinear_torch.py, for gptqmodel, as they are). Read, not run: no file of theirs was at hand.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.quantized import QuantizedWeight, unpack
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import Reader
from jettison.formats.parts import SCALE_TYPES
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder

SCALE = ""  # scales are transposed, so no tensor holds them as they are
PARTS = ("qweight", "qzeros", "scales")
BITS = (2, 3, 4, 8)
METHODS = ("auto-round", "intel/auto-round")  # quant_method of auto-round
FIRST, SECOND = ("auto_round:auto_gptq", "auto_gptq"), ("gptq_v2", "auto_round:gptqmodel")  # names of the versions


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in GPTQ's first packing."""
    method = quantization.get("quant_method")
    return method == "gptq" or (method in METHODS and quantization.get("packing_format", FIRST[0]) in FIRST)


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the tensors that hold a weight, on the meta device."""
    groups = grid.groups(columns)
    shapes = {"qweight": (columns * grid.bits // 32, rows), "qzeros": (groups, rows * grid.bits // 32)}
    parts = {name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in shapes.items()}
    return parts | {"scales": torch.empty(groups, rows, dtype=grid.scale_dtype, device="meta")}


def read_grids(source: ModelFolder, shift: int = 1) -> dict[str, Grid]:
    """Return linear name -> grid of every packed linear.

    shift: what is added to stored zero points.
    Raises JettisonError for tensors whose shapes and types do not belong together, groups that do not exist, and zero
    points that are no codes.
    """
    return {linear.name: grid for linear, grid, plain in _read_all(source, shift) if plain}


def read_reordered(source: ModelFolder, shift: int = 1) -> dict[str, Grid]:
    """Return linear name -> grid of every linear whose groups are no runs of neighbours; see ``read_dense``."""
    return {linear.name: grid for linear, grid, plain in _read_all(source, shift) if not plain}


def _read_all(source: ModelFolder, shift: int) -> Iterator[tuple[Linear, Grid, bool]]:
    """Yield every packed linear with its grid, and whether its groups are runs of neighbours."""
    for linear in source.anatomy:
        if source.has(f"{linear.name}.qweight"):
            grid = _grid(source, linear, shift)
            yield linear, grid, _is_plain(source, linear, grid)


def _is_plain(source: ModelFolder, linear: Linear, grid: Grid) -> bool:
    if not source.has(f"{linear.name}.g_idx"):
        return True
    order, groups = source.read(f"{linear.name}.g_idx"), grid.groups(linear.columns)
    fits = order.shape == (linear.columns,) and not order.is_floating_point()
    if not fits or not 0 <= int(order.min()) <= int(order.max()) < groups:
        where = f"{source.folder}: {linear.name}.g_idx"
        raise JettisonError(f"{where} does not name one of {groups} groups for each of {linear.columns} inputs")
    return torch.equal(order.long(), torch.arange(linear.columns) * groups // linear.columns)


def _bits(source: ModelFolder, linear: Linear) -> int:
    """Return the bits of a linear, from the shapes of its tensors."""
    shapes = {}
    for part in PARTS:
        tensor = source.locate(f"{linear.name}.{part}")[0]
        shapes[part], kind = source.checkpoint.shape(tensor), source.checkpoint.dtype(tensor)
        if kind not in (SCALE_TYPES if part == "scales" else ("I32",)) or len(shapes[part]) != 2:
            raise JettisonError(f"{source.folder}: {linear.name}.{part} is {kind} {shapes[part]}, not GPTQ's")
    words, groups = shapes["qweight"][0], shapes["scales"][0]
    bits = 32 * words // linear.columns
    fits = bits in BITS and shapes["qweight"] == (linear.columns * bits // 32, linear.rows)
    fits = fits and groups and linear.columns % groups == 0 and shapes["scales"] == (groups, linear.rows)
    if not fits or shapes["qzeros"] != (groups, linear.rows * bits // 32):
        raise JettisonError(
            f"{source.folder}: {linear.name} has tensors of shapes {shapes}, which a weight of {linear.rows} x "
            f"{linear.columns} in {', '.join(map(str, BITS))} bits does not have"
        )
    return bits


def _grid(source: ModelFolder, linear: Linear, shift: int) -> Grid:
    where, bits = f"{source.folder}: {linear.name}", _bits(source, linear)
    zero = unpack(source.read(f"{linear.name}.qzeros"), bits, linear.rows).int() + shift  # (groups, rows)
    if int(zero.max()) >= 2**bits:
        raise JettisonError(f"{where} has a zero point of {int(zero.max())}; at most {2**bits - 1} can be read")
    kind = source.checkpoint.dtype(source.locate(f"{linear.name}.scales")[0])
    size = WHOLE_ROW if len(zero) == 1 else linear.columns // len(zero)
    return UniformGrid(bits, size, bool((zero == 2 ** (bits - 1)).all()), SCALE_TYPES[kind])


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None), shift: int = 1) -> QuantizedWeight:
    """Read a packed linear, or some of its rows. shift: what is added to stored zero points."""
    scale, words = read(f"{name}.scales").T, read(f"{name}.qweight").T[rows].contiguous()
    codes = unpack(words, grid.bits, words.shape[1] * 32 // grid.bits)  # (rows, columns)
    zero = None
    if not grid.symmetric:
        zero = (unpack(read(f"{name}.qzeros"), grid.bits, len(scale)).T[rows] + shift).contiguous()
    return QuantizedWeight(codes, scale[rows].contiguous(), zero, grid)


def read_dense(read: Reader, name: str, grid: Grid, rows: slice = slice(None), shift: int = 1) -> torch.Tensor:
    """Read a linear of ``read_reordered``, or some of its rows, dequantized: (rows, columns) float32."""
    weight, order = read_weight(read, name, grid, rows, shift), read(f"{name}.g_idx").long()  # order: (columns,)
    zero = grid.zero_code if weight.zero is None else weight.zero.float()[:, order]
    return grid.decode(weight.codes.float(), weight.scale.float()[:, order], zero)
