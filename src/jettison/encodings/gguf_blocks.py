"""The types of GGUF with blocks of 32 weights, and those in full precision: their bytes.

A block has a float16 scale and, in types with a minimum, a float16 minimum. Codes of 4 and 5 bits lie in halves: the
low bits of byte i hold weight i, the high ones weight i + 16; fifth bits lie in a word of their own.

Source: ggml-quants.h of ggml; the arithmetic, and so every bit of the weights, is that of the package gguf.
"""

from typing import NamedTuple

import torch

from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid

WIDTH = 32  # weights of a block
FULL = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # types in full precision


class Type(NamedTuple):
    """A type of GGUF: its bits, whether its blocks have a minimum, and the bytes of one."""

    bits: int
    minimum: bool
    size: int

    @property
    def grid(self) -> Grid:
        """The grid that the type's codes lie on."""
        kind = OffsetGrid if self.minimum else UniformGrid
        return kind(self.bits, WIDTH, scale_type="float16")


TYPES = {
    "Q4_0": Type(4, False, 18), "Q4_1": Type(4, True, 20), "Q5_0": Type(5, False, 22), "Q5_1": Type(5, True, 24),
    "Q8_0": Type(8, False, 34),
}  # fmt: skip


def pack_full(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the bytes of a tensor (..., n) in full precision: uint8 (..., bytes)."""
    return weight.to(FULL[kind]).contiguous().view(torch.uint8)


def pack_blocks(weight: QuantizedWeight, kind: Type) -> torch.Tensor:
    """Return the bytes of a weight on the grid of a type: uint8 (rows, bytes)."""
    groups = weight.codes.unflatten(1, (-1, WIDTH))  # (rows, groups, 32)
    parts = [weight.scale, weight.zero] if kind.minimum else [weight.scale]
    blocks = [part.contiguous().unsqueeze(-1).view(torch.uint8) for part in parts]  # (rows, groups, 2)
    if kind.bits == 8:
        blocks.append(groups ^ 128)  # around 128 in our codes, int8 in the file
    else:
        if kind.bits == 5:
            fifth = (groups >> 4).unflatten(-1, (4, 8)) << torch.arange(8, dtype=torch.uint8)
            blocks.append(fifth.sum(-1, dtype=torch.uint8))  # (rows, groups, 4)
        low, high = (groups & 15).chunk(2, -1)
        blocks.append(low | high << 4)
    return torch.cat(blocks, -1).flatten(1)


def unpack_blocks(blocks: torch.Tensor, kind: Type) -> QuantizedWeight:
    """Return the weight of bytes (rows, bytes) that ``pack_blocks`` or another program made."""
    blocks = blocks.unflatten(1, (-1, kind.size))  # (rows, groups, bytes)
    halves = lambda first: blocks[..., first : first + 2].contiguous().view(torch.float16).squeeze(-1)  # (rows, groups)
    at, zero = 2, None
    if kind.minimum:
        at, zero = 4, halves(2)
    if kind.bits == 8:
        codes = blocks[..., at:] ^ 128
    else:
        low = blocks[..., kind.size - 16 :]
        codes = torch.cat([low & 15, low >> 4], -1)  # (rows, groups, 32)
        if kind.bits == 5:
            fifth = blocks[..., at : at + 4].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
            codes = codes | fifth.flatten(-2) << 4
    return QuantizedWeight(codes.flatten(1), halves(0), zero, kind.grid)


def regrouped(weight: QuantizedWeight, kind: Type) -> QuantizedWeight | None:
    """Return a weight with the same integers on the grid of a type; None if they do not fit.

    Groups of 64 or more become several blocks with one scale. An integer is code − zero point; a type without minima
    holds it if it is within its range, so that a 2-bit weight with zero points fits Q4_0. In a type with minima, the
    minimum of a block is −zero point · scale. Scales and minima are rounded to float16: nearly all bfloat16 scales are
    exact there, while minima may lose a bit.
    """
    grid, columns = weight.grid, weight.codes.shape[1]
    if not isinstance(grid, UniformGrid | OffsetGrid) or columns % WIDTH:
        return None
    width = columns if grid.group_size == WHOLE_ROW else grid.group_size
    if width % WIDTH or (grid.minimum and (not kind.minimum or grid.bits > kind.bits)):
        return None
    repeated = lambda values: values.float().repeat_interleave(width // WIDTH, 1)  # (rows, blocks)
    scale, codes = repeated(weight.scale), weight.codes
    if grid.minimum:
        zero = repeated(weight.zero)
    else:
        zeros = torch.full_like(weight.scale, grid.zero_code) if weight.zero is None else weight.zero
        if kind.minimum:
            if grid.bits > kind.bits:
                return None
            zero = -repeated(zeros) * scale
        else:
            shift = 2 ** (kind.bits - 1) - zeros.to(torch.int16)  # (rows, groups)
            codes = codes.to(torch.int16) + shift.repeat_interleave(width, 1)
            if int(codes.min()) < 0 or int(codes.max()) >= 2**kind.bits:
                return None
            zero = None
    half = lambda values: None if values is None else values.half()
    result = QuantizedWeight(codes.to(torch.uint8), half(scale), half(zero), kind.grid)
    finite = result.scale.isfinite().all() and (zero is None or result.zero.isfinite().all())
    return result if finite else None
