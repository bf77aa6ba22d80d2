"""The quantized types of GGUF that are grids of Jettison's: they stay packed, without loss. This format is only read.

A block of 32 weights has a float16 scale and, in types with a minimum, a float16 minimum. Codes of 4 and 5 bits lie in
halves: the low bits of byte i hold weight i, the high ones weight i + 16; fifth bits lie in a word of their own.

Source: ggml-quants.h of ggml; the arithmetic, and so every bit of the weights, is that of the package gguf.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import Grid
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import Reader
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.checkpoint import BLOCKS

WIDTH, SCALE = 32, ""  # weights of a block; the name of a tensor of scales, which the format lacks


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


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` is that of a GGUF file."""
    return quantization.get("quant_method") == "gguf"


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the bytes of a weight on the meta device."""
    size = next(kind.size for kind in TYPES.values() if kind.grid == grid)
    return {BLOCKS: torch.empty(rows, columns // WIDTH * size, dtype=torch.uint8, device="meta")}


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every linear and embedding whose type is a grid.

    Raises JettisonError if the shape of one is not that of the config.
    """
    grids = {}
    for linear in source.anatomy:
        if linear.layout not in ("linear", "embedding") or (place := source.find(f"{linear.name}.{BLOCKS}")) is None:
            continue
        tensor = place[0]
        if source.checkpoint.shape(tensor.removesuffix(BLOCKS) + "weight") != (linear.rows, linear.columns):
            raise JettisonError(
                f"{source.folder}: {linear.name} is not {linear.rows} x {linear.columns}, as the metadata says"
            )
        grids[linear.name] = TYPES[source.checkpoint.kind(tensor)].grid
    return grids


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    """Read a packed linear, or some of its rows."""
    kind = next(kind for kind in TYPES.values() if kind.grid == grid)
    blocks = read(f"{name}.{BLOCKS}")[rows]
    blocks = blocks.unflatten(1, (-1, kind.size))  # (rows, groups, bytes)
    halves = lambda first: blocks[..., first : first + 2].contiguous().view(torch.float16).squeeze(-1)  # (rows, groups)
    at, zero = 2, None
    if kind.minimum:
        at, zero = 4, halves(2)
    if kind.bits == 8:
        codes = blocks[..., at:] ^ 128  # int8 as uint8 around 128
    else:
        low = blocks[..., kind.size - 16 :]
        codes = torch.cat([low & 15, low >> 4], -1)  # (rows, groups, 32)
        if kind.bits == 5:
            fifth = blocks[..., at : at + 4].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
            codes = codes | fifth.flatten(-2) << 4
    return QuantizedWeight(codes.flatten(1), halves(0), zero, grid)
