"""``Grid``: the common base of encodings with a code per weight and a scale per group.

- There are two kinds, ``UniformGrid`` and ``ValueTable``.
- The layout is always the same: unsigned codes, and W[r, c] = value of code[r, c] · scale[r, g] with
  g = c // group_size.
- Methods ask a grid for ranges, nearest codes and values, so that a method works with every kind of grid.
- torch takes seconds to import, and planning only describes grids. So torch is imported inside the functions that need
  it.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from jettison.core.errors import UsageError, shown, unknown

if TYPE_CHECKING:
    import torch

WHOLE_ROW = -1  # as a group size: one group per row
SCALE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}


class Grid(ABC):
    """The set of values that the codes of a weight can stand for, given a scale and a zero point per group.

    bits: of a code.
    group_size: how many inputs of a row share a scale; -1 means the whole row.
    symmetric: no zero point is stored.
    scale_type: name of the type that scales are stored in. Scales are rounded to it before any code is chosen, so a
    method compensates for that rounding, and the file holds exactly the scales that the method used.
    values: the recipe's name of the values that codes stand for, such as ``int`` or ``nf4``.
    minimum: a group has, in place of an integer zero point, the value of code 0, in the type of its scale.
    """

    bits: int
    group_size: int
    symmetric: bool
    scale_type: str
    values: str
    minimum = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return what a recipe can give as ``values`` for a grid of this kind."""
        return (cls.values,)

    def _check_groups(self) -> None:
        """Raise UsageError for a group size or a scale type that is not valid."""
        if self.group_size != WHOLE_ROW and self.group_size < 1:
            raise UsageError(f"group_size = {shown(self.group_size)}: it must be positive, or -1 for the whole row")
        if self.scale_type not in SCALE_BITS:
            raise unknown("scale_type", self.scale_type, SCALE_BITS)

    @property
    def _group(self) -> str:
        """Return the group size as ``str(grid)`` shows it."""
        return "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"

    @property
    def scale_dtype(self) -> "torch.dtype":
        """Return the type that scales are stored in."""
        import torch

        return getattr(torch, self.scale_type)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the options of a recipe's quantize step that give this grid."""

    @property
    @abstractmethod
    def zero_code(self) -> int:
        """Return the code of the value 0 in a grid without a stored zero point."""

    @property
    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """Return the codes of the smallest and of the largest value."""

    @abstractmethod
    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Compute scale and zero point of groups whose values must reach from ``low`` to ``high``.

        low, high: one value per group, any shape, float32.
        Returns the scale, already rounded to scale_type, and the zero point (code of the value 0), both float32 and in
        the shape of ``low``.
        """

    @abstractmethod
    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        """Return the nearest codes as float32. The shapes need only be broadcastable."""

    @abstractmethod
    def decode(self, codes: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor | int") -> "torch.Tensor":
        """Return the weights (float32) of codes (float32). The shapes need only be broadcastable.

        The result is differentiable in ``scale``.
        """

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row of ``columns`` weights.

        Raises UsageError if the group size does not divide the row.
        """
        width = columns if self.group_size == WHOLE_ROW else self.group_size
        if columns % width:
            divisors = [size for size in (16, 32, 64, 128, 256) if columns % size == 0]
            raise UsageError(
                f"group_size {width} does not divide a row of {columns} weights; valid here: -1 (the whole row)"
                + "".join(f", {size}" for size in divisors)
            )
        return columns // width

    def grouped(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Reshape a weight (rows, columns) to (rows, groups, width), as a view where possible."""
        return weight.reshape(weight.shape[0], self.groups(weight.shape[1]), -1)

    def bits_per_weight(self, columns: int) -> float:
        """Return the stored bits per weight of a row of ``columns`` weights, including scales and zero points."""
        overhead = SCALE_BITS[self.scale_type] + (0 if self.symmetric else self.bits)
        return self.bits + overhead * self.groups(columns) / columns
