"""``QuantizedWeight``, a weight stored as codes, and the packing of codes into 32-bit words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jettison.encodings.grid import Grid

AT_ONCE = 1 << 25  # most weights of a matrix to process at once, where rows do not depend on each other


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight stored as codes on a grid.

    codes: (rows, columns) uint8.
    scale: (rows, groups), of type grid.scale_dtype.
    zero: (rows, groups), the zero points; None for a symmetric grid. uint8, as formats store it; a method may return
    fractional ones (float32) for study. For a grid with a minimum, the minima, of type grid.scale_dtype.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    grid: Grid

    @classmethod
    def nearest(cls, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> "QuantizedWeight":
        """Round ``weight`` (rows, columns) to the grid given by ``scale`` and ``zero`` (rows, groups)."""
        codes = grid.encode(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1))  # (rows, groups, width)
        return cls.of(codes.reshape(weight.shape), scale, zero, grid)

    @classmethod
    def of(cls, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> "QuantizedWeight":
        """Make a weight from float32 codes, scales and integer zero points; cast each to the type it is stored in."""
        stored_zero = None if grid.symmetric else zero.to(grid.scale_dtype if grid.minimum else torch.uint8)
        return cls(codes.to(torch.uint8), scale.to(grid.scale_dtype), stored_zero, grid)

    @classmethod
    def stack(cls, parts: Sequence["QuantizedWeight"]) -> "QuantizedWeight":
        """Join parts of a matrix along the rows, in order."""
        if len(parts) == 1:
            return parts[0]
        zero = None if parts[0].zero is None else torch.cat([part.zero for part in parts])
        codes, scale = torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts])
        return cls(codes, scale, zero, parts[0].grid)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weight (rows, columns), computed in float32 and rounded once to ``dtype``."""
        zero = self.grid.zero_code if self.zero is None else self.zero.float().unsqueeze(-1)
        codes = self.grid.grouped(self.codes).float()  # (rows, groups, width)
        return self.grid.decode(codes, self.scale.float().unsqueeze(-1), zero).reshape(self.codes.shape).to(dtype)

    def parts(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a file stores, by the names of compressed-tensors.

        Codes are packed along the rows. Zero points of an asymmetric grid are packed along the columns; minima stay
        as they are.
        """
        parts = {"weight_packed": pack(self.codes, self.grid.bits), "weight_scale": self.scale}
        if self.zero is not None:
            parts["weight_zero_point"] = pack_zero_points(self.zero, self.grid)
        return parts

    @property
    def nbytes(self) -> int:
        """Return the bytes of all ``parts``."""
        return sum(part.nbytes for part in self.parts().values())


def empty_parts(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the ``parts`` of a weight on the meta device, which have types and shapes but no data."""
    empty = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device="meta")
    words, groups = -(-columns * grid.bits // 32), grid.groups(columns)  # rounded up
    parts = {
        "weight_packed": empty(rows, words, dtype=torch.int32),
        "weight_scale": empty(rows, groups, dtype=grid.scale_dtype),
    }
    words = -(-rows * grid.bits // 32)
    zero = empty(rows, groups, dtype=grid.scale_dtype) if grid.minimum else empty(words, groups, dtype=torch.int32)
    return parts | ({} if grid.symmetric else {"weight_zero_point": zero})


def pack_zero_points(zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return zero points (rows, groups) as a checkpoint stores them: packed along the columns; minima as they are."""
    return zero.contiguous() if grid.minimum else pack(zero.T.contiguous(), grid.bits).T.contiguous()


def zero_points(stored: torch.Tensor, grid: Grid, rows: int) -> torch.Tensor:
    """Unpack the zero points of a checkpoint, as the inverse of ``pack_zero_points``. Returns (rows, groups)."""
    return stored if grid.minimum else unpack(stored.T, grid.bits, rows).T


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into words: a dense little-endian bit stream along every row.

    codes: (..., n) uint8.
    Returns (..., ceil(n · bits / 32)) int32.
    Source: the pack-quantized format of compressed-tensors (0.20 and later for 3, 5, 6 and 7 bits).
    """
    if codes.numel() > AT_ONCE and len(codes) > 1:  # the head of a large model is packed in parts, to save memory
        height = max(1, AT_ONCE // codes[0].numel())
        return torch.cat([pack(part, bits) for part in codes.split(height)])
    # A field is a code, or a single bit of a code; ``width`` is its number of bits, which divides 8.
    if 8 % bits == 0:
        fields, width = codes, bits
    else:  # a code may lie in two bytes, so it is split into single bits
        places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
        fields, width = ((codes.unsqueeze(-1) >> places) & 1).flatten(-2), 1  # (..., n · bits)
    per_byte, per_word = 8 // width, 32 // width
    fields = torch.nn.functional.pad(fields, (0, -fields.shape[-1] % per_word))  # whole words
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    fields = fields.unflatten(-1, (-1, per_byte))  # (..., bytes, fields per byte)
    return (fields << shifts).sum(-1, dtype=torch.uint8).contiguous().view(torch.int32)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack words that ``pack`` made.

    words: (..., w) int32. count: codes per row.
    Returns (..., count) uint8.
    """
    width = bits if 8 % bits == 0 else 1
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=words.device)
    if words.stride(-1) != 1:  # ``contiguous`` would return a column as it is, with a stride that ``view`` refuses
        words = words.clone(memory_format=torch.contiguous_format)
    fields = (words.contiguous().view(torch.uint8).unsqueeze(-1) >> shifts) & (2**width - 1)
    fields = fields.flatten(-2)  # (..., 32 · w / width)
    if width == bits:
        return fields[..., :count]
    fields = fields[..., : count * bits].unflatten(-1, (count, bits))  # single bits
    return (fields << torch.arange(bits, dtype=torch.uint8, device=words.device)).sum(-1, dtype=torch.uint8)
