"""Weights that are stored by codes, and the packing of codes into words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jettison.encodings.grid import Grid

AT_ONCE = 1 << 25  # weights of one matrix that are worked on at once where rows do not depend on each other


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
        zero = self.grid.zero_code if self.zero is None else self.zero.float().unsqueeze(-1)
        codes = self.grid.grouped(self.codes).float()  # (rows, groups, width)
        return self.grid.decode(codes, self.scale.float().unsqueeze(-1), zero).reshape(self.codes.shape).to(dtype)

    def parts(self) -> dict[str, torch.Tensor]:
        """What a file holds of it, by the names of compressed-tensors: codes packed along the rows, scales, and zero
        points, where there are any, packed along the columns."""
        parts = {"weight_packed": pack(self.codes, self.grid.bits), "weight_scale": self.scale}
        if self.zero is not None:
            parts["weight_zero_point"] = pack(self.zero.T.contiguous(), self.grid.bits).T.contiguous()
        return parts

    @property
    def nbytes(self) -> int:
        """Of the parts."""
        return sum(part.nbytes for part in self.parts().values())


def empty_parts(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """The parts of a weight on the meta device: their types and shapes."""
    empty = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device="meta")
    words, groups = -(-columns * grid.bits // 32), grid.groups(columns)
    parts = {
        "weight_packed": empty(rows, words, dtype=torch.int32),
        "weight_scale": empty(rows, groups, dtype=grid.scale_dtype),
    }
    zero = {"weight_zero_point": empty(-(-rows * grid.bits // 32), groups, dtype=torch.int32)}
    return parts | ({} if grid.symmetric else zero)


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
