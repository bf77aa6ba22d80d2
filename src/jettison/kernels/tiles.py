"""Weights in the order in which the CPU kernels read them: tiles of 32 rows, each one stream of bytes.

``cpu/tiles.h`` describes the bytes. This file is their reference: it packs and unpacks them by PyTorch alone.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from jettison.grid import WHOLE_ROW, Grid, pack, unpack

LAYOUT = 1  # of tiles, in files that hold them: another number whenever the bytes are others
TILE_ROWS, LANES = 32, 16
LONGEST_SPAN, WHOLE_ROW_SPAN, SHORTEST_SPAN = 256, 128, 32  # columns that share the scale of their int8 activations
MOST_FILLED = 1.25
STEP_COLUMNS = {2: 16, 3: 32, 4: 8, 8: 4}
SCALE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # see Type in cpu/tiles.h


@dataclass(frozen=True)
class Tiling:
    """How a weight of (rows, columns) lies in tiles. ``span`` columns share a scale; the last span may be shorter.

    A group longer than 256 columns is stored as several spans with the same scale, so that activations are quantized
    in short pieces. Codes of 5 to 7 bits are stored in 8. ``middle`` is the zero point of symmetric grids.
    """

    rows: int
    columns: int
    bits: int
    span: int
    middle: int
    scale_dtype: torch.dtype

    @classmethod
    def of(cls, grid: Grid, rows: int, columns: int) -> "Tiling | None":
        """None where the kernels do not serve: scales of another type, long groups without a divisor of use, and groups
        so short that filling them up to whole steps would cost more than a quarter."""
        group = columns if grid.group_size == WHOLE_ROW else grid.group_size
        if group <= LONGEST_SPAN:
            span = group
        elif group == columns:
            span = WHOLE_ROW_SPAN
        else:
            span = max(each for each in range(1, LONGEST_SPAN + 1) if group % each == 0)
        bits = grid.bits if grid.bits <= 4 else 8
        filled = -(-span // STEP_COLUMNS[bits]) * STEP_COLUMNS[bits]
        if grid.scale_dtype not in SCALE_TYPES or span < min(SHORTEST_SPAN, group) or filled > MOST_FILLED * span:
            return None
        return cls(rows, columns, bits, span, grid.middle, grid.scale_dtype)

    @cached_property
    def groups(self) -> int:
        return -(-self.columns // self.span)

    @cached_property
    def steps(self) -> int:
        """Of a group: columns that are unpacked at once."""
        return -(-self.span // STEP_COLUMNS[self.bits])

    @cached_property
    def code_bytes(self) -> int:
        """Of a group of a tile."""
        return self.steps * TILE_ROWS * STEP_COLUMNS[self.bits] * self.bits // 8

    @cached_property
    def tiles_shape(self) -> tuple[int, int, int]:
        """(tiles, groups, bytes of codes and scales)."""
        return -(-self.rows // TILE_ROWS), self.groups, self.code_bytes + TILE_ROWS * self.scale_dtype.itemsize

    @cached_property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """What the C functions take."""
        return self.rows, self.columns, self.span, self.bits, self.middle, SCALE_TYPES[self.scale_dtype]

    @cached_property
    def zero_shape(self) -> tuple[int, int, int]:
        return -(-self.rows // TILE_ROWS), self.groups, TILE_ROWS


def spread(values: torch.Tensor, grid: Grid, tiling: Tiling) -> torch.Tensor:
    """(rows, groups of the grid) -> (rows, groups of the tiling)."""
    if values.shape[1] == 1:
        return values.expand(-1, tiling.groups)
    return values.repeat_interleave(tiling.groups // values.shape[1], 1)


def pack_codes(codes: torch.Tensor, scale: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """codes: uint8 (rows, columns). scale: (rows, groups). Returns uint8 ``tiling.tiles_shape``."""
    bits, (tiles, groups, _) = tiling.bits, tiling.tiles_shape
    pad = torch.nn.functional.pad
    codes = pad(codes, (0, groups * tiling.span - tiling.columns, 0, tiles * TILE_ROWS - tiling.rows))
    codes = pad(codes.unflatten(1, (groups, -1)), (0, tiling.steps * STEP_COLUMNS[bits] - tiling.span))
    codes = codes.view(tiles, 2, LANES, groups, tiling.steps, -1, 4)  # (tile, half, lane, group, step, quad, 4)
    codes = codes.permute(0, 3, 4, 1, 2, 6, 5)  # (tile, group, step, half, lane, 4, quad)
    if bits == 3:
        low = _bytes((codes & 3).unflatten(-1, (2, 4)), 2).permute(0, 1, 2, 3, 6, 4, 5)  # two blocks of four quads
        blocks = torch.cat([low, _bytes(codes >> 2, 1).unsqueeze(4)], 4)
    else:
        blocks = _bytes(codes, bits)
    scale = pad(scale, (0, 0, 0, tiles * TILE_ROWS - tiling.rows)).view(tiles, TILE_ROWS, groups).transpose(1, 2)
    return torch.cat([blocks.reshape(tiles, groups, -1), scale.contiguous().view(torch.uint8)], 2)


def unpack_codes(tiles: torch.Tensor, tiling: Tiling) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of ``pack_codes``: uint8 codes (rows, columns), scale (rows, groups)."""
    bits, (count, groups, _) = tiling.bits, tiling.tiles_shape
    blocks, scale = tiles.split([tiling.code_bytes, tiles.shape[2] - tiling.code_bytes], 2)
    if bits == 3:
        blocks = blocks.reshape(count, groups, tiling.steps, 2, 3, LANES, 4)
        low = _fields(blocks[:, :, :, :, :2], 2, 4).permute(0, 1, 2, 3, 5, 6, 4, 7).flatten(-2)
        codes = low | _fields(blocks[:, :, :, :, 2], 1, 8) << 2
    else:
        codes = _fields(blocks.reshape(count, groups, tiling.steps, 2, LANES, 4), bits, 8 // bits)
    codes = codes.permute(0, 3, 4, 1, 2, 6, 5).reshape(count * TILE_ROWS, groups, -1)[..., : tiling.span]
    codes = codes.flatten(1)[: tiling.rows, : tiling.columns]
    scale = scale.contiguous().view(tiling.scale_dtype).transpose(1, 2).reshape(-1, groups)[: tiling.rows]
    return codes.contiguous(), scale.contiguous()


def pack_zero(zero: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """uint8 (rows, groups) -> ``tiling.zero_shape``."""
    tiles = tiling.zero_shape[0]
    zero = torch.nn.functional.pad(zero, (0, 0, 0, tiles * TILE_ROWS - tiling.rows))
    return zero.view(tiles, TILE_ROWS, tiling.groups).transpose(1, 2).contiguous()


def unpack_zero(zero: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    return zero.transpose(1, 2).reshape(-1, tiling.groups)[: tiling.rows]


def dense(tiles: torch.Tensor, zero: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """(rows, columns) float32."""
    codes, scale = unpack_codes(tiles, tiling)
    each = lambda values: values.float().repeat_interleave(tiling.span, 1)[:, : tiling.columns]
    offset = tiling.middle if zero is None else each(unpack_zero(zero, tiling))
    return (codes.float() - offset) * each(scale)


def to_checkpoint(
    tiles: torch.Tensor, zero: torch.Tensor | None, tiling: Tiling, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The packed words, scales and packed zero points that a checkpoint holds."""
    codes, scale = unpack_codes(tiles, tiling)
    of_grid = slice(None, None, tiling.groups // grid.groups(tiling.columns))
    words = pack(codes, grid.bits)
    if zero is None:
        return words, scale[:, of_grid].contiguous(), None
    points = unpack_zero(zero, tiling)[:, of_grid]
    return words, scale[:, of_grid].contiguous(), pack(points.T.contiguous(), grid.bits).T.contiguous()


def zero_points(zero_point: torch.Tensor, grid: Grid, rows: int) -> torch.Tensor:
    """Packed zero points of a checkpoint -> uint8 (rows, groups)."""
    return unpack(zero_point.T, grid.bits, rows).T


def _bytes(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., n) small numbers -> (...) bytes with n fields of ``bits``."""
    shifts = torch.arange(0, fields.shape[-1] * bits, bits, dtype=torch.uint8, device=fields.device)
    return (fields << shifts).sum(-1, dtype=torch.uint8)


def _fields(blocks: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    shifts = torch.arange(0, count * bits, bits, dtype=torch.uint8, device=blocks.device)
    return blocks.unsqueeze(-1) >> shifts & (1 << bits) - 1
