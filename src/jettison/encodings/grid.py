"""What a number may be: an integer grid. Weights on a grid, and their packing, are in ``uniform``.

One layout everywhere: unsigned codes, W[r, c] = (code[r, c] − zero[r, g]) · scale[r, g], g = c // group_size.
A symmetric grid has its zero fixed in the middle, at 2^(bits−1); a scale may be negative, which turns the grid round.

Planning only describes grids, so torch, which takes seconds to import, is imported where a tensor type is needed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jettison.core.errors import UsageError, shown, unknown

if TYPE_CHECKING:
    import torch

WHOLE_ROW = -1
SCALE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}


@dataclass(frozen=True)
class Grid:
    """``bits`` 2 to 8; ``group_size`` inputs share a scale (-1: the whole row); asymmetric grids have a zero point.

    scale_type names the type that scales are stored in. Scales are rounded to it before any code is chosen, so that a
    method compensates for the rounding and the file holds exactly what the method saw.
    """

    bits: int
    group_size: int = 128
    symmetric: bool = True
    scale_type: str = "bfloat16"

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits = {shown(self.bits)}: a grid has 2 to 8 bits")
        if self.group_size != WHOLE_ROW and self.group_size < 1:
            raise UsageError(f"group_size = {shown(self.group_size)}: it must be positive, or -1 for the whole row")
        if self.scale_type not in SCALE_BITS:
            raise unknown("scale_type", self.scale_type, SCALE_BITS)

    def __str__(self) -> str:
        group = "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"
        return f"int{self.bits} {group} {'sym' if self.symmetric else 'asym'}"

    @property
    def scale_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.scale_type)

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

    def grouped(self, weight: "torch.Tensor") -> "torch.Tensor":
        """(rows, columns) -> (rows, groups, width), a view where possible."""
        return weight.reshape(weight.shape[0], self.groups(weight.shape[1]), -1)

    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Scale and zero point of groups that must reach from ``low`` to ``high`` (any shape, float32).

        The range always contains 0, so that 0 is on the grid. Returns float32 tensors of the same shape; the scale
        is already rounded to scale_type, the zero point is an integer.
        """
        import torch

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

    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        """Nearest codes, float32, for broadcastable shapes."""
        return ((weight / scale).round() + zero).clamp(0, self.max_code)

    def bits_per_weight(self, columns: int) -> float:
        """Bits stored per weight of a row of ``columns``, scale and zero point counted."""
        overhead = SCALE_BITS[self.scale_type] + (0 if self.symmetric else self.bits)
        return self.bits + overhead * self.groups(columns) / columns
