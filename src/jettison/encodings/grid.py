"""What a number may be: integer grids, weights on them, and their packing into words.

One layout everywhere: unsigned codes, W[r, c] = (code[r, c] − zero[r, g]) · scale[r, g], g = c // group_size.
A symmetric grid has its zero fixed in the middle, at 2^(bits−1); a scale may be negative, which turns the grid round.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jettison.core.errors import UsageError, shown

WHOLE_ROW = -1
AT_ONCE = 1 << 25  # weights of one matrix that are worked on at once where rows do not depend on each other


@dataclass(frozen=True)
class Grid:
    """``bits`` 2 to 8; ``group_size`` inputs share a scale (-1: the whole row); asymmetric grids have a zero point.

    scale_dtype is the type that scales are stored in. Scales are rounded to it before any code is chosen, so that a
    method compensates for the rounding and the file holds exactly what the method saw.
    """

    bits: int
    group_size: int = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits = {shown(self.bits)}: a grid has 2 to 8 bits")
        if self.group_size != WHOLE_ROW and self.group_size < 1:
            raise UsageError(f"group_size = {shown(self.group_size)}: it must be positive, or -1 for the whole row")

    def __str__(self) -> str:
        group = "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"
        return f"int{self.bits} {group} {'sym' if self.symmetric else 'asym'}"

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    def groups(self, columns: int) -> int:
        """How many groups a row of ``columns`` weights has. Raises UsageError if the group size does not divide."""
        width = columns if self.group_size == WHOLE_ROW else self.group_size
        if columns % width:
            divisors = [size for size in (16, 32, 64, 128, 256) if columns % size == 0]
            raise UsageError(
                f"group_size {width} does not divide a row of {columns} weights; valid here: -1 (the whole row)"
                + "".join(f", {size}" for size in divisors)
            )
        return columns // width

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """(rows, columns) -> (rows, groups, width), a view where possible."""
        return weight.reshape(weight.shape[0], self.groups(weight.shape[1]), -1)

    def scale_zero(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of groups that must reach from ``low`` to ``high`` (any shape, float32).

        The range always contains 0, so that 0 is on the grid. Returns float32 tensors of the same shape; the scale
        is already rounded to scale_dtype, the zero point is an integer.
        """
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        flat = low == high
        low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
        scale = ((high - low) / self.max_code).to(self.scale_dtype).float()
        scale = scale.clamp(min=torch.finfo(self.scale_dtype).tiny)
        zero = torch.full_like(scale, self.middle) if self.symmetric else torch.round(-low / scale)
        return scale, zero.clamp(0, self.max_code)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Nearest codes, float32, for broadcastable shapes."""
        return (torch.round(weight / scale) + zero).clamp(0, self.max_code)

    def bits_per_weight(self, columns: int) -> float:
        """Bits stored per weight of a row of ``columns``, scale and zero point counted."""
        overhead = torch.finfo(self.scale_dtype).bits + (0 if self.symmetric else self.bits)
        return self.bits + overhead * self.groups(columns) / columns


@dataclass(frozen=True)
class QuantizedWeight:
    """codes: uint8 (rows, columns). scale: (rows, groups). zero: (rows, groups), None when symmetric.

    ``zero`` is uint8 where a format can store it; a method may return a fractional one (float32) for study.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    grid: Grid

    @classmethod
    def nearest(cls, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> "QuantizedWeight":
        """Round ``weight`` (rows, columns) to the grid given by ``scale`` and ``zero`` (rows, groups)."""
        codes = grid.encode(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1))
        return cls.of(codes.reshape(weight.shape), scale, zero, grid)

    @classmethod
    def of(cls, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> "QuantizedWeight":
        """From float32 codes, scales and integer zero points: cast each to the type it is stored in."""
        stored_zero = None if grid.symmetric else zero.to(torch.uint8)
        return cls(codes.to(torch.uint8), scale.to(grid.scale_dtype), stored_zero, grid)

    @classmethod
    def stack(cls, parts: Sequence["QuantizedWeight"]) -> "QuantizedWeight":
        """One matrix from parts of its rows."""
        if len(parts) == 1:
            return parts[0]
        zero = None if parts[0].zero is None else torch.cat([part.zero for part in parts])
        codes, scale = torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts])
        return cls(codes, scale, zero, parts[0].grid)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(rows, columns). Computed in float32 and rounded once."""
        zero = self.grid.middle if self.zero is None else self.zero.float().unsqueeze(-1)
        steps = self.grid.grouped(self.codes).float() - zero
        return (steps * self.scale.float().unsqueeze(-1)).reshape(self.codes.shape).to(dtype)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes (..., n) -> int32 words (..., ceil(n·bits/32)): a dense little-endian bit stream along each row.

    The layout of compressed-tensors' pack-quantized format (0.20 and later for 3, 5, 6 and 7 bits).
    """
    if codes.numel() > AT_ONCE and len(codes) > 1:  # the head of a large model: in parts, for the sake of memory
        height = max(1, AT_ONCE // codes[0].numel())
        return torch.cat([pack(part, bits) for part in codes.split(height)])
    if 8 % bits == 0:
        fields, width = codes, bits
    else:  # a code may straddle two bytes: spread it into single bits
        places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
        fields, width = ((codes.unsqueeze(-1) >> places) & 1).flatten(-2), 1
    per_byte, per_word = 8 // width, 32 // width
    fields = torch.nn.functional.pad(fields, (0, -fields.shape[-1] % per_word))
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    fields = fields.unflatten(-1, (-1, per_byte))
    return (fields << shifts).sum(-1, dtype=torch.uint8).contiguous().view(torch.int32)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of ``pack``: int32 words (..., w) -> uint8 codes (..., count)."""
    width = bits if 8 % bits == 0 else 1
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=words.device)
    fields = (words.contiguous().view(torch.uint8).unsqueeze(-1) >> shifts) & (2**width - 1)
    fields = fields.flatten(-2)
    if width == bits:
        return fields[..., :count]
    fields = fields[..., : count * bits].unflatten(-1, (count, bits))
    return (fields << torch.arange(bits, dtype=torch.uint8, device=words.device)).sum(-1, dtype=torch.uint8)
