"""Uniform integer grids: the value of a code, before scaling, is code − zero point."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jettison.core.errors import UsageError, shown
from jettison.encodings.grid import Grid

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class UniformGrid(Grid):
    """A grid of equally spaced values, with 2 to 8 bits.

    The zero of a symmetric grid is fixed in the middle, at code 2^(bits−1); an asymmetric grid has a zero point per
    group. A scale may be negative, which reverses the order of the values.
    """

    bits: int
    group_size: int = 128
    symmetric: bool = True
    scale_type: str = "bfloat16"
    values = "int"  # no annotation, so this is no field: it is the same for all uniform grids

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits = {shown(self.bits)}: a grid has 2 to 8 bits")
        self._check_groups()

    def __str__(self) -> str:
        return f"int{self.bits} {self._group} {'sym' if self.symmetric else 'asym'}"

    def options(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}

    @property
    def max_code(self) -> int:
        """Return the largest code."""
        return 2**self.bits - 1

    @property
    def zero_code(self) -> int:
        return 2 ** (self.bits - 1)

    @property
    def ends(self) -> tuple[int, int]:
        return 0, self.max_code

    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Compute scale and zero point, see ``Grid``. Ranges are widened to contain 0, and zero points are integers, so
        0 is exactly on the grid."""
        import torch

        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        flat = low == high  # only groups of zeros: any range will do for them
        low, high = torch.where(flat, -1.0, low), torch.where(flat, 1.0, high)
        scale = ((high - low) / self.max_code).to(self.scale_dtype).float()
        scale = scale.clamp(min=torch.finfo(self.scale_dtype).tiny)
        zero = torch.full_like(scale, self.zero_code) if self.symmetric else torch.round(-low / scale)
        return scale, zero.clamp(0, self.max_code)

    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        return ((weight / scale).round() + zero).clamp(0, self.max_code)

    def decode(self, codes: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor | int") -> "torch.Tensor":
        return (codes - zero).mul_(scale)
