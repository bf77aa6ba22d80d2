"""GPTQ checkpoints, whose matrices auto-round stores in the same packing.

- A matrix (out, in) is stored transposed: ``qweight`` (in · bits / 32, out) int32, packed along the inputs;
  ``scales`` (groups, out); ``qzeros`` (groups, out · bits / 32) int32, zero points minus 1, except in version 2
  (``formats.gptq_v2``); ``g_idx`` (in), the group of every input. Codes of 3 bits may lie in two words.
- Bits and group size of every matrix follow from the shapes. The config states the grid of most weights; ``dynamic``
  lists the others (``+:``) and dense modules (``-:``), as patterns.
- Written: 2, 3, 4 and 8 bits, symmetric, for sides that 32 divides, since GPTQModel counts words by 32 codes. A zero
  point of 0 would be stored as -1, so version 1 holds no asymmetric grids.
- Read: also asymmetric ones. Where inputs were sorted by their activation (desc_act: ``g_idx`` of another order), a
  group is no run of neighbours: such a matrix lies on no grid of Jettison's, so it is read dense, never kept packed.

Source: GPTQModel and auto-round, which write these tensors (auto_round_extension/torch: qlinear_torch_zp.py stores zero
points minus 1, qlinear_torch.py, for gptqmodel, as they are). ``dynamic``: GPTQModel, quantization/config.py. Read, not
run: no file of theirs was at hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.quantized import QuantizedWeight, pack, unpack
from jettison.encodings.uniform import UniformGrid
from jettison.formats import transposed
from jettison.formats.format import Reader, refusals
from jettison.formats.parts import SCALE_TYPES
from jettison.formats.transposed import packs
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder

__all__ = ["SCALE", "detects", "packs", "problems", "read_dense", "read_grids", "read_reordered", "read_weight"]
__all__ += ["refuses", "section", "stored", "tensors"]

LIBRARIES = ("safetensors",)
NAME, VERSION = "gptq", "gptq"  # of the format; its checkpoint_format
SIDE = 32  # rows and columns are multiples of it
SCALE = ""  # scales are transposed, so no tensor holds them as they are
PARTS = ("qweight", "qzeros", "scales")
BITS = (2, 3, 4, 8)
METHODS = ("auto-round", "intel/auto-round")  # quant_method of auto-round
FIRST, SECOND = ("auto_round:auto_gptq", "auto_gptq"), ("gptq_v2", "auto_round:gptqmodel")  # names of the versions


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in GPTQ's first packing."""
    return quantization.get("quant_method") == "gptq" and quantization.get("checkpoint_format") not in SECOND


def refuses(anatomy: Anatomy, grids: Mapping[str, Grid], name: str = NAME, symmetric: bool = True) -> list[str]:
    """Refuse grids that the layout does not have, and sides that 32 does not divide. One line each.

    name: of the format.
    symmetric: whether it holds symmetric grids only.
    """
    odd = lambda linear, grid: packs(linear) and bool(linear.rows % SIDE or linear.columns % SIDE)
    sides = refusals(name, anatomy, grids, {f"matrices with a side that {SIDE} does not divide": odd})
    return transposed.refuses(name, anatomy, grids, BITS, symmetric) + sides


def section(
    anatomy: Anatomy,
    grids: Mapping[str, Grid],
    dense: Sequence[str] = (),
    extra: Sequence[Linear] = (),
    checkpoint_format: str = VERSION,
) -> dict[str, Any]:
    """Return ``quantization_config`` for config.json. Modules under ``dynamic`` are named one by one.

    grids: linear name -> grid of the packed linears.
    dense, extra: matrices of blocks that the model does not have: dense ones, and packed ones.
    """
    main, head = transposed.main_grid(anatomy, grids, extra), anatomy.head
    others = {linear.name: grids[linear.name] for linear in (*anatomy, *extra) if linear.name in grids}
    dynamic: dict[str, Any] = {
        f"+:{transposed.exactly(name)}": transposed.described(grid) for name, grid in others.items() if grid != main
    }
    dynamic |= {f"-:{transposed.exactly(name)}": {} for name in transposed.left_dense(anatomy, grids, dense)}
    return {
        "quant_method": "gptq",
        **transposed.described(main),
        "desc_act": False,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        "lm_head": bool(head and head.name in grids),
        "dynamic": dynamic,
        "meta": {"quantizer": [f"jettison:{version('jettison')}"]},
    }


def tensors(name: str, weight: QuantizedWeight, shift: int = 1, order: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors of a shard, by name, for a packed linear called ``name``.

    shift: what is subtracted from zero points.
    order: whether ``g_idx`` is stored.
    """
    grid, (rows, columns) = weight.grid, weight.codes.shape
    groups = grid.groups(columns)
    zero = torch.full((rows, groups), grid.zero_code, dtype=torch.uint8) if weight.zero is None else weight.zero
    parts = {
        "qweight": pack(weight.codes, grid.bits).T.contiguous(),
        "qzeros": pack((zero - shift).T.contiguous(), grid.bits),
        "scales": weight.scale.T.contiguous(),
    }
    if order:
        parts["g_idx"] = torch.arange(columns, dtype=torch.int32) // (columns // groups)
    return {f"{name}.{part}": value for part, value in parts.items()}


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """List the reasons why transformers cannot load this checkpoint, as sentences. Empty for most models."""
    return transposed.problems("GPTQ", anatomy, grids, one_grid=True)


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
