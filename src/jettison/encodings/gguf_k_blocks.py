"""The K types of GGUF: blocks of 256 weights in groups of 16 or 32, whose scales are small integers.

value = d · scale · (code − middle) in Q3_K and Q6_K; value = d · scale · code − dmin · minimum in Q2_K, Q4_K and Q5_K.
d and dmin are float16, one of each per block.

Source: ggml-quants.h of ggml; the arithmetic, and so every bit of the weights, is that of the package gguf.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

BLOCK = 256  # weights


class KType(NamedTuple):
    """A K type.

    bits: of a code. width: weights of a group.
    minimum: whether groups have a minimum beside their scale.
    lowest, highest: the range of a group's scale; minima have the same.
    size: bytes of a block.
    """

    bits: int
    width: int
    minimum: bool
    lowest: int
    highest: int
    size: int

    @property
    def middle(self) -> int:
        """The code of the value 0 in a type without minima; 0 in others."""
        return 0 if self.minimum else 2 ** (self.bits - 1)


K_TYPES = {
    "Q2_K": KType(2, 16, True, 0, 15, 84),
    "Q3_K": KType(3, 16, False, -32, 31, 110),
    "Q4_K": KType(4, 32, True, 0, 63, 144),
    "Q5_K": KType(5, 32, True, 0, 63, 176),
    "Q6_K": KType(6, 16, False, -128, 127, 210),
}


@dataclass(frozen=True)
class KBlocks:
    """Blocks of a K type.

    kind: name of the type.
    codes: (blocks, 256) uint8. scales, minima: (blocks, groups) int16. d, dmin: (blocks,) float16.
    minima, dmin: None in types without minima.
    """

    kind: str
    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None
    d: torch.Tensor
    dmin: torch.Tensor | None

    def values(self) -> torch.Tensor:
        """Return the weights (blocks, 256), float32."""
        kind = K_TYPES[self.kind]
        scale = (self.d.float().unsqueeze(1) * self.scales.float()).unsqueeze(-1)  # (blocks, groups, 1)
        codes = (self.codes.to(torch.int16) - kind.middle).float().unflatten(1, (-1, kind.width))
        result = scale * codes
        if kind.minimum:
            result = result - (self.dmin.float().unsqueeze(1) * self.minima.float()).unsqueeze(-1)
        return result.flatten(1)

    def pack(self) -> torch.Tensor:
        """Return the bytes of the blocks: uint8 (blocks, size)."""
        codes, scales = self.codes, self.scales
        halves = [part.unsqueeze(1).contiguous().view(torch.uint8) for part in (self.d, self.dmin) if part is not None]
        if self.kind == "Q2_K":
            parts = [_bytes(scales | self.minima << 4), _join(codes, 4, 32, 2), *halves]
        elif self.kind == "Q3_K":
            parts = [_join(codes >> 2, 8, 32, 1), _join(codes & 3, 4, 32, 2), _six_bits(scales + 32), *halves]
        elif self.kind == "Q6_K":
            parts = [_join(codes & 15, 2, 64, 4), _join(codes >> 4, 4, 32, 2), _bytes(scales & 255), *halves]
        else:
            fifth = [_join(codes >> 4, 8, 32, 1)] if self.kind == "Q5_K" else []
            parts = [*halves, _scales_and_minima(scales, self.minima), *fifth, _join(codes & 15, 2, 32, 4)]
        return torch.cat(parts, 1)

    @classmethod
    def unpack(cls, blocks: torch.Tensor, kind: str) -> "KBlocks":
        """Return the blocks of bytes (blocks, size) uint8."""
        half = lambda first: blocks[:, first : first + 2].contiguous().view(torch.float16).squeeze(1)
        minima = dmin = None
        if kind == "Q2_K":
            scales, codes, d, dmin = blocks[:, :16] & 15, _split(blocks[:, 16:80], 4, 32, 2), half(80), half(82)
            minima = blocks[:, :16] >> 4
        elif kind == "Q3_K":
            codes = _split(blocks[:, 32:96], 4, 32, 2) | _split(blocks[:, :32], 8, 32, 1) << 2
            scales, d = _split_six_bits(blocks[:, 96:108]) - 32, half(108)
        elif kind == "Q6_K":
            codes = _split(blocks[:, :128], 2, 64, 4) | _split(blocks[:, 128:192], 4, 32, 2) << 4
            scales, d = blocks[:, 192:208].contiguous().view(torch.int8), half(208)
        else:
            d, dmin = half(0), half(2)
            scales, minima = _split_scales_and_minima(blocks[:, 4:16])
            codes = _split(blocks[:, -128:], 2, 32, 4)
            codes = codes | _split(blocks[:, 16:48], 8, 32, 1) << 4 if kind == "Q5_K" else codes
        whole = lambda values: None if values is None else values.to(torch.int16)
        return cls(kind, codes, whole(scales), whole(minima), d, dmin)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.uint8)


def _join(fields: torch.Tensor, count: int, width: int, bits: int) -> torch.Tensor:
    """Put ``count`` fields into a byte, those of runs of ``width`` weights that follow each other.

    fields: (blocks, n) uint8 of ``bits`` bits. Returns (blocks, n / count) uint8.
    """
    shifts = torch.arange(0, count * bits, bits, dtype=torch.uint8).unsqueeze(1)
    return (fields.unflatten(1, (-1, count, width)) << shifts).sum(2, dtype=torch.uint8).flatten(1)


def _split(joined: torch.Tensor, count: int, width: int, bits: int) -> torch.Tensor:
    """Undo ``_join``."""
    shifts = torch.arange(0, count * bits, bits, dtype=torch.uint8).unsqueeze(1)
    fields = joined.unflatten(1, (-1, 1, width)) >> shifts  # (blocks, runs, count, width)
    return (fields & (2**bits - 1)).flatten(1)


def _six_bits(values: torch.Tensor) -> torch.Tensor:
    """Pack 16 numbers of 6 bits into 12 bytes: low bits of i and i + 8 in byte i, high bits of four in each of four."""
    return torch.cat([_join(_bytes(values & 15), 2, 8, 4), _join(_bytes(values >> 4), 4, 4, 2)], 1)


def _split_six_bits(joined: torch.Tensor) -> torch.Tensor:
    """Undo ``_six_bits``. Returns int16."""
    low, high = _split(joined[:, :8], 2, 8, 4), _split(joined[:, 8:], 4, 4, 2)
    return (low | high << 4).to(torch.int16)


def _scales_and_minima(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Pack 8 scales and 8 minima of 6 bits into 12 bytes.

    The first four of each lie in the low bits of bytes 0 to 7. Of the last four, the low halves share bytes 8 to 11,
    and two bits each lie above the first ones.
    """
    first, last = zip(scales.chunk(2, 1), minima.chunk(2, 1), strict=True)
    above = [_bytes(one | (two >> 4) << 6) for one, two in zip(first, last, strict=True)]
    return torch.cat([*above, _bytes((last[0] & 15) | (last[1] & 15) << 4)], 1)


def _split_scales_and_minima(joined: torch.Tensor) -> list[torch.Tensor]:
    """Undo ``_scales_and_minima``. Returns scales and minima, uint8 (blocks, 8) each."""
    *above, below = joined.chunk(3, 1)
    low = below & 15, below >> 4
    return [torch.cat([one & 63, two | (one >> 6) << 4], 1) for one, two in zip(above, low, strict=True)]
