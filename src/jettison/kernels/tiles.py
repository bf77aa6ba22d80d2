"""Tiles: weights in the layout that the CPU kernels read, one stream of bytes for every 32 rows.

``cpu/tiles.h`` describes the bytes. This file is the reference: it packs and unpacks tiles with PyTorch alone.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import pack, pack_zero_points
from jettison.encodings.uniform import UniformGrid

LAYOUT = 1  # version of the layout in files that hold tiles; must change whenever the bytes change
TILE_ROWS, LANES = 32, 16
LONGEST_SPAN, WHOLE_ROW_SPAN, SHORTEST_SPAN = 256, 128, 32  # columns whose int8 activations share a scale
MOST_FILLED = 1.25  # upper limit of a group's columns after padding to whole steps, divided by those before
SPARSE = 20  # added to the bits of 2:4 weights, which store two of every four columns
MINIMUM = -1  # in place of ``middle``: zero holds minima, in the type of the scales
STEP_COLUMNS = {2: 16, 3: 32, 4: 8, 8: 4, SPARSE + 4: 32, SPARSE + 8: 32}
HALF_BYTES = {2: 64, 3: 192, 4: 64, 8: 64, SPARSE + 4: 192, SPARSE + 8: 320}  # bytes of half a step, by packing
SCALE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # see Type in cpu/tiles.h


@dataclass(frozen=True)
class Tiling:
    """How a weight (rows, columns) is stored in tiles.

    bits: of a stored code; codes of 5 to 7 bits are stored in 8.
    span: columns that share a scale; the last span of a row may be shorter. A group longer than 256 columns is stored
        as several spans with the same scale, so that activations are quantized in short pieces.
    middle: the zero point of symmetric grids; MINIMUM if groups have a minimum in place of a zero point.
    sparse: the weight is 2:4: at least two of every four columns are zero, and two are left out.
    """

    rows: int
    columns: int
    bits: int
    span: int
    middle: int
    scale_dtype: torch.dtype
    sparse: bool = False

    @classmethod
    def of(cls, grid: Grid, rows: int, columns: int, sparse: bool = False) -> "Tiling | None":
        """Return the tiling of a weight, or None if the kernels do not support its grid. They do not support:

        - value tables, and scales of other types than SCALE_TYPES;
        - groups of more than 256 columns, shorter than a row, that no number from 32 to 256 divides;
        - groups so short that padding to whole steps would add more than a quarter;
        - 2:4 weights in other than 4 or 8 bits, or with zero points.
        """
        if not isinstance(grid, UniformGrid | OffsetGrid):
            return None
        group = columns if grid.group_size == WHOLE_ROW else grid.group_size
        if group <= LONGEST_SPAN:
            span = group
        elif group == columns:
            span = WHOLE_ROW_SPAN
        else:
            span = max(divisor for divisor in range(1, LONGEST_SPAN + 1) if group % divisor == 0)
        bits = grid.bits if grid.bits <= 4 else 8
        step = STEP_COLUMNS.get(bits + SPARSE * sparse)
        if step is None or (sparse and not grid.symmetric):
            return None
        filled = -(-span // step) * step
        if grid.scale_dtype not in SCALE_TYPES or span < min(SHORTEST_SPAN, group) or filled > MOST_FILLED * span:
            return None
        middle = MINIMUM if grid.minimum else grid.zero_code
        return cls(rows, columns, bits, span, middle, grid.scale_dtype, sparse)

    @cached_property
    def groups(self) -> int:
        """Number of spans in a row."""
        return -(-self.columns // self.span)

    @cached_property
    def packing(self) -> int:
        """Bits and sparsity as one number, which the C++ side calls bits."""
        return self.bits + SPARSE * self.sparse

    @cached_property
    def steps(self) -> int:
        """Number of steps in a group; the columns of a step are unpacked at once."""
        return -(-self.span // STEP_COLUMNS[self.packing])

    @cached_property
    def code_bytes(self) -> int:
        """Bytes of the codes of one group of a tile."""
        return self.steps * 2 * HALF_BYTES[self.packing]

    @cached_property
    def scale_bytes(self) -> int:
        """Bytes of the scales of one group of a tile."""
        return TILE_ROWS * self.scale_dtype.itemsize

    @cached_property
    def tiles_shape(self) -> tuple[int, int, int]:
        """Shape (tiles, groups, bytes): of codes and scales, and with 2:4 weights of the sums of values."""
        sums = 2 * TILE_ROWS * self.sparse
        return -(-self.rows // TILE_ROWS), self.groups, self.code_bytes + self.scale_bytes + sums

    @cached_property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """The numbers that the C functions take, in their order."""
        return self.rows, self.columns, self.span, self.packing, self.middle, SCALE_TYPES[self.scale_dtype]

    @cached_property
    def zero_shape(self) -> tuple[int, int, int]:
        """Shape (tiles, groups, rows of a tile) of the zero points."""
        return -(-self.rows // TILE_ROWS), self.groups, TILE_ROWS


def two_of_four(codes: torch.Tensor, grid: Grid) -> bool:
    """Return whether codes (rows, columns) are 2:4: at least two of every four neighbours in a row stand for zero."""
    if not grid.symmetric or codes.shape[1] % 4:
        return False
    return int((codes.unflatten(1, (-1, 4)) != grid.zero_code).sum(-1).max()) <= 2


def spread(values: torch.Tensor, grid: Grid, tiling: Tiling) -> torch.Tensor:
    """Repeat the values of every group of the grid for its spans.

    values: (rows, groups of the grid). Returns (rows, groups of the tiling).
    """
    if values.shape[1] == 1:
        return values.expand(-1, tiling.groups)
    return values.repeat_interleave(tiling.groups // values.shape[1], 1)


def pack_codes(codes: torch.Tensor, scale: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Pack codes and scales into tiles.

    codes: (rows, columns) uint8. scale: (rows, groups), of the tiling's type. Returns ``tiling.tiles_shape`` uint8.
    """
    bits, (tiles, groups, _) = tiling.bits, tiling.tiles_shape
    pad, filling = torch.nn.functional.pad, tiling.middle * tiling.sparse  # in 2:4 weights padding must mean zero
    codes = pad(codes, (0, groups * tiling.span - tiling.columns, 0, tiles * TILE_ROWS - tiling.rows), value=filling)
    codes = codes.unflatten(1, (groups, -1))  # (rows, groups, span)
    codes = pad(codes, (0, tiling.steps * STEP_COLUMNS[tiling.packing] - tiling.span), value=filling)  # whole steps
    scale = pad(scale, (0, 0, 0, tiles * TILE_ROWS - tiling.rows)).view(tiles, TILE_ROWS, groups).transpose(1, 2)
    scale = scale.contiguous().view(torch.uint8)  # (tiles, groups, bytes)
    if tiling.sparse:
        return torch.cat([*_pack_two_of_four(codes, tiling, scale)], 2)
    codes = codes.view(tiles, 2, LANES, groups, tiling.steps, -1, 4)  # (tile, half, lane, group, step, quad, 4)
    codes = codes.permute(0, 3, 4, 1, 2, 6, 5)  # (tile, group, step, half, lane, 4, quad)
    if bits == 3:
        low = _bytes((codes & 3).unflatten(-1, (2, 4)), 2).permute(0, 1, 2, 3, 6, 4, 5)  # two blocks of four quads
        blocks = torch.cat([low, _bytes(codes >> 2, 1).unsqueeze(4)], 4)
    else:
        blocks = _bytes(codes, bits)
    return torch.cat([blocks.reshape(tiles, groups, -1), scale], 2)


def _pack_two_of_four(codes: torch.Tensor, tiling: Tiling, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Pack 2:4 codes: of every four columns, the values of two and their places.

    codes: (rows, groups, width) uint8. scale: (tiles, groups, bytes) uint8.
    Returns three parts (tiles, groups, bytes) uint8: indices and values, scales, sums of the values.
    """
    tiles, groups, _ = tiling.tiles_shape
    value = codes.view(tiles, 2, LANES, groups, tiling.steps, 4, 2, 4).short() - tiling.middle  # (..., pair, quad, 4)
    value = value.permute(0, 3, 4, 1, 2, 5, 6, 7)  # (tile, group, step, half, lane, pair, quad, 4)
    kept = torch.arange(4, dtype=torch.int16).add(4 * (value == 0)).sort(-1).values[..., :2] % 4  # nonzero first
    kept = kept.sort(-1).values  # (..., pair, quad, 2) places in ascending order
    value = value.gather(-1, kept.long()).flatten(-2)  # (..., pair, 4 bytes)
    index = _bytes(kept.flatten(-2).transpose(-1, -2).to(torch.uint8), 2).unsqueeze(4)  # (..., 1, lane, 4)
    value = value.permute(0, 1, 2, 3, 5, 4, 6)  # (tile, group, step, half, pair, lane, 4)
    sums = value.sum((2, 4, 6), dtype=torch.int16).contiguous()  # (tile, group, half, lane)
    if tiling.bits == 4:
        value = (value[:, :, :, :, 0::2] & 15) | (value[:, :, :, :, 1::2] & 15) << 4
    blocks = torch.cat([index.flatten(4).view(*index.shape), (value & 255).to(torch.uint8)], 4)
    return blocks.reshape(tiles, groups, -1), scale, sums.view(tiles, groups, -1).view(torch.uint8)


def _unpack_two_of_four(blocks: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Unpack 2:4 codes. Returns (tile, group, step, half, lane, columns of a step) uint8."""
    tiles, groups, _ = tiling.tiles_shape
    blocks = blocks.reshape(tiles, groups, tiling.steps, 2, -1, LANES, 4)
    index = _fields(blocks[:, :, :, :, 0], 2, 4).transpose(-1, -2)  # (..., lane, pair, 4)
    value = blocks[:, :, :, :, 1:].permute(0, 1, 2, 3, 5, 4, 6)  # (..., lane, block, 4)
    if tiling.bits == 4:
        value = torch.stack([value << 4, value & 240], 6).flatten(5, 6)
        value = value.view(torch.int8) >> 4  # extends the sign of 4-bit values
    value = value.contiguous().view(torch.int8).short() + tiling.middle
    codes = torch.full((*value.shape[:-1], 2, 4), tiling.middle, dtype=torch.int16)
    return (
        codes.scatter_(-1, index.unflatten(-1, (2, 2)).long(), value.unflatten(-1, (2, 2))).flatten(5).to(torch.uint8)
    )


def unpack_codes(tiles: torch.Tensor, tiling: Tiling) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack tiles, as the inverse of ``pack_codes``. Returns codes (rows, columns) uint8 and scale (rows, groups)."""
    bits, (count, groups, _) = tiling.bits, tiling.tiles_shape
    blocks, scale = tiles[:, :, : tiling.code_bytes], tiles[:, :, tiling.code_bytes :][:, :, : tiling.scale_bytes]
    if tiling.sparse:
        codes = _unpack_two_of_four(blocks, tiling)
    elif bits == 3:
        blocks = blocks.reshape(count, groups, tiling.steps, 2, 3, LANES, 4)
        low = _fields(blocks[:, :, :, :, :2], 2, 4).permute(0, 1, 2, 3, 5, 6, 4, 7).flatten(-2)
        codes = low | _fields(blocks[:, :, :, :, 2], 1, 8) << 2
    else:
        codes = _fields(blocks.reshape(count, groups, tiling.steps, 2, LANES, 4), bits, 8 // bits)
    if not tiling.sparse:
        codes = codes.transpose(-1, -2).flatten(5)  # (tile, group, step, half, lane, columns of a step)
    codes = codes.permute(0, 3, 4, 1, 2, 5).reshape(count * TILE_ROWS, groups, -1)[..., : tiling.span]
    codes = codes.flatten(1)[: tiling.rows, : tiling.columns]
    scale = scale.contiguous().view(tiling.scale_dtype).transpose(1, 2).reshape(-1, groups)[: tiling.rows]
    return codes.contiguous(), scale.contiguous()


def pack_zero(zero: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Pack zero points or minima (rows, groups) into ``tiling.zero_shape``, in their own type."""
    tiles = tiling.zero_shape[0]
    zero = torch.nn.functional.pad(zero, (0, 0, 0, tiles * TILE_ROWS - tiling.rows))
    return zero.view(tiles, TILE_ROWS, tiling.groups).transpose(1, 2).contiguous()


def unpack_zero(zero: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Unpack zero points or minima, as the inverse of ``pack_zero``. Returns (rows, groups)."""
    return zero.transpose(1, 2).reshape(-1, tiling.groups)[: tiling.rows]


def dense(tiles: torch.Tensor, zero: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """Return the weight of tiles as (rows, columns) float32."""
    codes, scale = unpack_codes(tiles, tiling)
    per_column = lambda values: values.float().repeat_interleave(tiling.span, 1)[:, : tiling.columns]  # (rows, columns)
    offset = tiling.middle if zero is None else per_column(unpack_zero(zero, tiling))
    if tiling.middle == MINIMUM:
        return codes.float() * per_column(scale) + offset
    return (codes.float() - offset) * per_column(scale)


def to_checkpoint(
    tiles: torch.Tensor, zero: torch.Tensor | None, tiling: Tiling, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Convert tiles to the layout of checkpoints. Returns packed words, scales and packed zero points."""
    codes, scale = unpack_codes(tiles, tiling)
    of_grid = slice(None, None, tiling.groups // grid.groups(tiling.columns))  # the first span of every group
    words = pack(codes, grid.bits)
    if zero is None:
        return words, scale[:, of_grid].contiguous(), None
    points = unpack_zero(zero, tiling)[:, of_grid]
    return words, scale[:, of_grid].contiguous(), pack_zero_points(points, grid)


def _bytes(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack fields (..., n) of ``bits`` bits into bytes (...), the first field in the lowest bits."""
    shifts = torch.arange(0, fields.shape[-1] * bits, bits, dtype=torch.uint8, device=fields.device)
    return (fields << shifts).sum(-1, dtype=torch.uint8)


def _fields(blocks: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack bytes (...) into fields (..., count) of ``bits`` bits, as the inverse of ``_bytes``."""
    shifts = torch.arange(0, count * bits, bits, dtype=torch.uint8, device=blocks.device)
    return blocks.unsqueeze(-1) >> shifts & (1 << bits) - 1
