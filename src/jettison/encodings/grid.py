"""How a weight is stored by codes: what every encoding with a code per weight and a scale per group has in common.

``UniformGrid`` and ``ValueTable`` are the two kinds. One layout everywhere: unsigned codes, W[r, c] = the value of
code[r, c] · scale[r, g], g = c // group_size. Methods ask a grid for ranges, nearest codes and values, so that one
method serves every kind.

Planning only describes grids, so torch, which takes seconds to import, is imported where a tensor type is needed.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from jettison.core.errors import UsageError, shown, unknown

if TYPE_CHECKING:
    import torch

WHOLE_ROW = -1
SCALE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}


class Grid(ABC):
    """``bits`` of a code; ``group_size`` inputs share a scale (-1: the whole row).

    symmetric: no zero point is stored. values: the recipe's name of what codes stand for.
    scale_type names the type that scales are stored in. Scales are rounded to it before any code is chosen, so that a
    method compensates for the rounding and the file holds exactly what the method saw.
    """

    bits: int
    group_size: int
    symmetric: bool
    scale_type: str
    values: str

    def _check_groups(self) -> None:
        if self.group_size != WHOLE_ROW and self.group_size < 1:
            raise UsageError(f"group_size = {shown(self.group_size)}: it must be positive, or -1 for the whole row")
        if self.scale_type not in SCALE_BITS:
            raise unknown("scale_type", self.scale_type, SCALE_BITS)

    @property
    def _group(self) -> str:
        return "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"

    @property
    def scale_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.scale_type)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """As in a recipe."""

    @property
    @abstractmethod
    def zero_code(self) -> int:
        """The code of the value 0 where no zero point is stored."""

    @property
    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """The codes of the least and the greatest value."""

    @abstractmethod
    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Scale, and code of the value 0, of groups that must reach from ``low`` to ``high`` (any shape, float32).

        Returns float32 tensors of the same shape; the scale is already rounded to scale_type.
        """

    @abstractmethod
    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        """Nearest codes, float32, for broadcastable shapes."""

    @abstractmethod
    def decode(self, codes: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor | int") -> "torch.Tensor":
        """Codes (float32) -> weights (float32), for broadcastable shapes. Differentiable in ``scale``."""

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

    def bits_per_weight(self, columns: int) -> float:
        """Bits stored per weight of a row of ``columns``, scale and zero point counted."""
        overhead = SCALE_BITS[self.scale_type] + (0 if self.symmetric else self.bits)
        return self.bits + overhead * self.groups(columns) / columns
