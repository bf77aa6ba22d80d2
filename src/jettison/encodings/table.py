"""Value tables: a code is an index into a table of sixteen values, which are denser where weights are frequent."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jettison.core.errors import unknown
from jettison.encodings.grid import Grid

if TYPE_CHECKING:
    import torch

# fp4: E2M1 (OCP Microscaling Formats 1.0, section 5.3.3), in the order of its bits: sign, exponent, mantissa.
# nf4: the quantiles of a normal distribution that QLoRA rounds to (arXiv:2305.14314, appendix E).
TABLES = {
    "fp4": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ValueTable(Grid):
    """A grid whose values are those of a fixed table. Every group has a scale and no zero point.

    values: the table, ``fp4`` or ``nf4``, both of 4 bits.
    """

    values: str
    group_size: int = 64
    scale_type: str = "bfloat16"
    bits = 4  # no annotation, so bits and symmetric are no fields: they are the same for all tables
    symmetric = True

    def __post_init__(self):
        if self.values not in TABLES:
            raise unknown("values", self.values, TABLES)
        self._check_groups()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(TABLES)

    def __str__(self) -> str:
        return f"{self.values} {self._group}"

    def options(self) -> dict[str, Any]:
        return {"values": self.values, "bits": self.bits, "group_size": self.group_size}

    @property
    def zero_code(self) -> int:
        return TABLES[self.values].index(0.0)

    @property
    def ends(self) -> tuple[int, int]:
        table = TABLES[self.values]
        return table.index(min(table)), table.index(max(table))

    def scale_zero(self, low: "torch.Tensor", high: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        table = TABLES[self.values]
        # The smallest scale with which the table reaches both ends. A scale of 0, of a group of zeros, becomes 1.
        scale = torch.maximum(low.clamp(max=0.0) / min(table), high.clamp(min=0.0) / max(table))
        scale = torch.where(scale == 0, 1.0, scale).to(self.scale_dtype).float()
        scale = scale.clamp(min=torch.finfo(self.scale_dtype).tiny)
        return scale, torch.full_like(scale, self.zero_code)

    def encode(self, weight: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor") -> "torch.Tensor":
        import torch

        codes, borders = _sorted(self.values)
        return codes.to(weight.device)[torch.bucketize(weight / scale, borders.to(weight.device))]

    def decode(self, codes: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor | int") -> "torch.Tensor":
        import torch

        return torch.tensor(TABLES[self.values], device=codes.device)[codes.long()] * scale


@cache
def _sorted(values: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the codes in the order of their values, as float32, and the midpoints between neighbouring values."""
    import torch

    table = TABLES[values]
    codes = {value: code for code, value in reversed(list(enumerate(table)))}  # of 0.0 and -0.0, the first code is kept
    ordered = sorted(codes)
    borders = [(low + high) / 2 for low, high in pairwise(ordered)]
    return torch.tensor([float(codes[value]) for value in ordered]), torch.tensor(borders)
