"""Which type of GGUF holds a matrix, and the bytes of its rows."""

from collections.abc import Sequence

import torch

from jettison.encodings.gguf_blocks import FULL, TYPES, WIDTH, pack_blocks, pack_full, regrouped, unpack_blocks
from jettison.encodings.gguf_k_blocks import BLOCK, K_TYPES, KBlocks
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.numerics.k_search import Fit, fit_k
from jettison.numerics.ranges import find_range

KINDS = (*FULL, *TYPES, *K_TYPES)
# Bits of a grid -> the type for it. Q4_0 and Q8_0 hold such integers as they are; the K types fit their scales anew.
OF_BITS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 7: "Q8_0", 8: "Q8_0"}
OF_MINIMA = {2: "Q2_K", 3: "Q4_1", 4: "Q4_1", 5: "Q5_1"}  # the same for grids with zero points or minima
NEXT = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q4_1", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that do not divide
Weight = QuantizedWeight | torch.Tensor  # packed; or dense (rows, columns)


def wanted_kind(grid: Grid | None, stored: str) -> str:
    """Return the type for a matrix on a grid, or for a dense one (None) of the type ``stored``."""
    if grid is None:
        return stored if stored in FULL else "F32"
    if not isinstance(grid, UniformGrid | OffsetGrid):
        return OF_BITS[grid.bits] if grid.bits != 4 else "Q4_K"
    return OF_BITS[grid.bits] if grid.symmetric else OF_MINIMA.get(grid.bits, OF_BITS[grid.bits])


def fitting_kind(kind: str, columns: int) -> str:
    """Return a type, or the next one if its blocks do not divide a row: one of 32 weights, else F16."""
    if kind in K_TYPES and columns % BLOCK:
        kind = NEXT[kind]
    return "F16" if kind in TYPES and columns % WIDTH else kind


def row_bytes(kind: str, columns: int) -> int:
    """Return the bytes of a row."""
    if kind in FULL:
        return columns * FULL[kind].itemsize
    return columns // WIDTH * TYPES[kind].size if kind in TYPES else columns // BLOCK * K_TYPES[kind].size


def pack_rows(weight: Weight, kind: str, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Return the bytes of rows in a type, uint8 (rows, bytes).

    The integers of a packed weight are kept where the type holds them. Others are found by a search for the least
    squared error, weighted by ``importance`` (columns,).
    """
    packed = isinstance(weight, QuantizedWeight)
    if kind in TYPES and packed and (kept := regrouped(weight, TYPES[kind])) is not None:
        return pack_blocks(kept, TYPES[kind])
    dense = weight.dequantize() if packed else weight
    if kind in FULL:
        return pack_full(dense, kind)
    if kind in K_TYPES:
        return fit_k(dense, kind, importance, _start(weight, kind) if packed else None)
    grid, groups = TYPES[kind].grid, TYPES[kind].grid.grouped(dense.float())  # (rows, groups, 32)
    weights = None if importance is None else importance.float().reshape(1, -1, WIDTH)
    return pack_blocks(
        QuantizedWeight.nearest(dense.float(), *find_range(groups, grid, True, weights), grid), TYPES[kind]
    )


def unpack_rows(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the weights (rows, columns) float32 of bytes (rows, bytes)."""
    if kind in FULL:
        return blocks.contiguous().view(FULL[kind]).float()
    if kind in TYPES:
        return unpack_blocks(blocks, TYPES[kind]).dequantize()
    return KBlocks.unpack(blocks.reshape(-1, K_TYPES[kind].size), kind).values().reshape(len(blocks), -1)


def _start(weight: QuantizedWeight, kind: str) -> Fit | None:
    """Return scale and minimum of every group of a K type for a weight on an integer grid, see ``fit_k``."""
    grid, own, columns = weight.grid, K_TYPES[kind], weight.codes.shape[1]
    width = columns if grid.group_size == WHOLE_ROW else grid.group_size
    if not isinstance(grid, UniformGrid | OffsetGrid) or grid.bits > own.bits or width % own.width:
        return None
    repeated = lambda values: values.float().repeat_interleave(width // own.width, 1)  # (rows, groups of the type)
    scale = repeated(weight.scale)
    if not own.minimum:
        return (scale, None) if grid.symmetric else None
    if grid.minimum:
        lowest = repeated(weight.zero)
    else:
        zero = repeated(torch.full_like(weight.scale, grid.zero_code) if weight.zero is None else weight.zero)
        lowest = -zero * scale
    other = lowest + grid.ends[1] * scale  # of the last code, which is the lowest value if the scale is negative
    return scale.abs(), -torch.minimum(lowest, other).clamp(max=0.0)


def file_type(kinds: Sequence[str]) -> int | None:
    """Return general.file_type for the type that most weights have, as llama.cpp numbers them; None if it has none."""
    numbers = {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
        "Q5_K": 16, "Q6_K": 18, "BF16": 32,
    }  # fmt: skip
    return numbers.get(max(kinds, key=kinds.count)) if kinds else None
