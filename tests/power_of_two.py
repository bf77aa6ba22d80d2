"""A grid that the package does not have, as a user would add one: powers of two."""

from dataclasses import dataclass
from typing import Any

import torch

from jettison.encodings.grid import Grid


@dataclass(frozen=True)
class PowerOfTwo(Grid):
    """Values 0 and ±2^-k for k = 0 ... 2^(bits-1) - 2, times the scale of a group; there is no zero point.

    Code: the sign in the highest bit. The other bits are 0 for the value 0, else 1 + k; k = 0 is the largest value.
    """

    bits: int = 4
    group_size: int = 64
    scale_type: str = "bfloat16"
    symmetric = True
    values = "pow2"

    def __str__(self) -> str:
        return f"pow2 {self.bits} bits {self._group}"

    def options(self) -> dict[str, Any]:
        return {"values": self.values, "bits": self.bits, "group_size": self.group_size}

    @property
    def _sign(self) -> int:
        return 2 ** (self.bits - 1)

    @property
    def zero_code(self) -> int:
        return 0

    @property
    def ends(self) -> tuple[int, int]:
        return self._sign + 1, 1

    def scale_zero(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.maximum(-low.clamp(max=0.0), high.clamp(min=0.0))
        scale = torch.where(scale == 0, 1.0, scale).to(self.scale_dtype).float()
        return scale.clamp(min=torch.finfo(self.scale_dtype).tiny), torch.zeros_like(scale)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        ratio, last = weight / scale, self._sign - 2
        magnitude = ratio.abs()
        # The border between 2^-k and 2^-(k+1) is 0.75 · 2^-k.
        exponent = torch.floor(-torch.log2(magnitude.clamp(min=2.0**-30) * (4 / 3))).add(1).clamp(0, last)
        codes = exponent + 1 + self._sign * (ratio < 0)
        return torch.where(magnitude < 2.0 ** -(last + 1), torch.zeros_like(codes), codes)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | int) -> torch.Tensor:
        codes = codes.float()
        negative = codes >= self._sign
        exponent = codes - self._sign * negative
        value = torch.where(exponent == 0, 0.0, torch.exp2(1 - exponent))
        return torch.where(negative, -value, value) * scale
