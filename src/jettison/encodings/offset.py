"""Grids with a minimum: the value of a code is code · scale + minimum, as in Q4_1 and Q5_1 of GGUF."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jettison.core.errors import UsageError, shown
from jettison.encodings.grid import Grid

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OffsetGrid(Grid):
    """A grid of equally spaced values whose lowest one is stored, in ``scale_type``, in place of a zero point.

    0 need not be on the grid. No recipe asks for it, because methods that round expect integer zero points: such
    weights come from files that are quantized already.
    """

    bits: int
    group_size: int = 32
    scale_type: str = "float16"
    values = "affine"  # no annotation, so values, symmetric and minimum are no fields
    symmetric = False
    minimum = True

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise UsageError(f"bits = {shown(self.bits)}: a grid has 2 to 8 bits")
        self._check_groups()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return ()

    def __str__(self) -> str:
        return f"int{self.bits} {self._group} min"

    def options(self) -> dict[str, Any]:
        return {"values": self.values, "bits": self.bits, "group_size": self.group_size}

    @property
    def zero_code(self) -> int:
        return 0

    @property
    def ends(self) -> tuple[int, int]:
        return 0, 2**self.bits - 1

    def bits_per_weight(self, columns: int) -> float:
        scale = super().bits_per_weight(columns) - self.bits * (1 + self.groups(columns) / columns)
        return self.bits + 2 * scale

    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Compute scale and minimum, see ``Grid``. The minimum takes the place of the zero point."""
        import torch

        scale = ((high - low) / self.ends[1]).to(self.scale_dtype).float()
        scale = scale.clamp(min=torch.finfo(self.scale_dtype).tiny)
        return scale, low.to(self.scale_dtype).float()

    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        return ((weight - zero) / scale).round().clamp(*self.ends)

    def decode(self, codes: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor | int") -> "torch.Tensor":
        return codes * scale + zero
