"""AWQ checkpoints in the packing GEMM, and those of auto-round in it.

- A matrix (out, in) is stored transposed: ``qweight`` (in, out · bits / 32) and ``qzeros`` (groups, out · bits / 32),
  int32, the codes of neighbouring outputs in a word in the order of ``ORDER``; ``scales`` (groups, out).
- Zero points are stored as they are, also those of symmetric grids, so every uniform grid of 4 or 8 bits is held
  exactly. A model has one number of bits and one group size. A matrix whose zero points are all in the middle is read
  as symmetric.

Source: AutoAWQ, which writes these tensors in 4 bits (awq/utils/packing_utils.py); of 8 bits, vLLM, which reads them
(quantization/awq_marlin.py; undo_interleave in marlin_utils.py). Read, not run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.quantized import QuantizedWeight, pack, unpack
from jettison.encodings.uniform import UniformGrid
from jettison.formats import transposed
from jettison.formats.format import Reader, refusals
from jettison.formats.gptq import METHODS, SCALE
from jettison.formats.parts import SCALE_TYPES
from jettison.formats.transposed import packs
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder

__all__ = ["SCALE", "detects", "packs", "problems", "read_grids", "read_weight", "refuses", "section"]
__all__ += ["stored", "tensors"]

LIBRARIES = ("safetensors",)
# Bits -> the output, of those in a word, whose code lies at each place of the word.
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
PARTS = ("qweight", "qzeros", "scales")


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in AWQ's packing GEMM."""
    method = quantization.get("quant_method")
    rounded = method in METHODS and quantization.get("packing_format") == "auto_round:auto_awq"
    return rounded or (method == "awq" and str(quantization.get("version", "gemm")).lower() == "gemm")


def refuses(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """Refuse grids that the layout does not have, several grids, and rows that do not fill words. One line each."""
    odd = lambda linear, grid: packs(linear) and grid.bits in ORDER and bool(linear.rows % len(ORDER[grid.bits]))
    lines = transposed.refuses("awq", anatomy, grids, tuple(ORDER), symmetric=False)
    lines += refusals("awq", anatomy, grids, {"matrices whose rows do not fill words of 32 bits": odd})
    kinds = {(grids[linear.name].bits, grids[linear.name].group_size): linear for linear in anatomy
             if packs(linear) and linear.name in grids}  # fmt: skip
    if len(kinds) > 1:
        several = ", ".join(f"{bits} bits in groups of {size}" for bits, size in sorted(kinds))
        lines.append(f"awq holds one number of bits and one group size for a model; given: {several}")
    return lines


def section(
    anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = (), extra: Sequence[Linear] = ()
) -> dict[str, Any]:
    """Return ``quantization_config`` for config.json. Dense modules are named one by one.

    grids: linear name -> grid of the packed linears.
    dense, extra: matrices of blocks that the model does not have: dense ones, and packed ones.
    """
    main, head = transposed.main_grid(anatomy, grids, extra), anatomy.head
    return {
        "quant_method": "awq",
        "bits": main.bits,
        "group_size": main.group_size,
        "zero_point": True,  # also of symmetric grids: loaders would take 0 without it
        "version": "gemm",
        "lm_head": bool(head and head.name in grids),
        "modules_to_not_convert": transposed.left_dense(anatomy, grids, dense),
    }


def tensors(name: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """Return the tensors of a shard, by name, for a packed linear called ``name``."""
    grid, (rows, columns) = weight.grid, weight.codes.shape
    zero = weight.zero
    if zero is None:
        zero = torch.full((rows, grid.groups(columns)), grid.zero_code, dtype=torch.uint8)
    return {
        f"{name}.qweight": _words(weight.codes, grid.bits),
        f"{name}.qzeros": _words(zero, grid.bits),
        f"{name}.scales": weight.scale.T.contiguous(),
    }


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """List the reasons why transformers cannot load this checkpoint, as sentences. Empty for most models."""
    return transposed.problems("AWQ", anatomy, grids, one_grid=False)


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the tensors that hold a weight, on the meta device."""
    groups, words = grid.groups(columns), rows * grid.bits // 32
    shapes = {"qweight": (columns, words), "qzeros": (groups, words)}
    parts = {name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in shapes.items()}
    return parts | {"scales": torch.empty(groups, rows, dtype=grid.scale_dtype, device="meta")}


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every packed linear.

    Raises JettisonError for tensors whose shapes and types do not belong together.
    """
    packed = [linear for linear in source.anatomy if source.has(f"{linear.name}.qweight")]
    return {linear.name: _grid(source, linear) for linear in packed}


def _grid(source: ModelFolder, linear: Linear) -> Grid:
    places = {part: source.locate(f"{linear.name}.{part}")[0] for part in PARTS}
    shapes = {part: tuple(source.checkpoint.shape(tensor)) for part, tensor in places.items()}
    kinds = {part: source.checkpoint.dtype(tensor) for part, tensor in places.items()}
    groups = shapes["scales"][0] if len(shapes["scales"]) == 2 else 0
    bits = next((bits for bits in ORDER if shapes["qweight"] == (linear.columns, linear.rows * bits // 32)), 0)
    fits = groups and linear.columns % groups == 0 and bits and linear.rows % len(ORDER[bits]) == 0
    if fits and kinds["scales"] in SCALE_TYPES:
        size = WHOLE_ROW if groups == 1 else linear.columns // groups
        grid = UniformGrid(bits, size, False, SCALE_TYPES[kinds["scales"]])
        expected = {part: tuple(value.shape) for part, value in stored(linear.rows, linear.columns, grid).items()}
        if shapes == expected and kinds["qweight"] == kinds["qzeros"] == "I32":
            zero = _codes(source.read(f"{linear.name}.qzeros"), bits)
            return replace(grid, symmetric=bool((zero == grid.zero_code).all()))
    raise JettisonError(
        f"{source.folder}: {linear.name} has tensors {kinds} of shapes {shapes}, which a weight of {linear.rows} x "
        f"{linear.columns} in AWQ's {' or '.join(map(str, ORDER))} bits does not have"
    )


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes (out, n). Returns words (n, out · bits / 32)."""
    places = codes.T.unflatten(1, (-1, len(ORDER[bits])))  # (n, words, codes of a word)
    return pack(places[..., list(ORDER[bits])].flatten(1).contiguous(), bits)


def _codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack words (n, out · bits / 32). Returns (out, n) uint8."""
    order = ORDER[bits]
    places = unpack(words, bits, words.shape[1] * len(order)).unflatten(1, (-1, len(order)))
    return places[..., [order.index(output) for output in range(len(order))]].flatten(1).T.contiguous()


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    """Read a packed linear, or some of its rows."""
    scale, codes = read(f"{name}.scales").T[rows].contiguous(), _codes(read(f"{name}.qweight"), grid.bits)[rows]
    zero = None if grid.symmetric else _codes(read(f"{name}.qzeros"), grid.bits)[rows]
    return QuantizedWeight(codes, scale, zero, grid)
