"""The block DCT: an image becomes maps of frequency components, and back, with gradients.

- The orthonormal DCT-II of every block, so the energy of an image is that of its components, and the inverse is exact.
- Component ``u · N + v`` of a block of N × N has vertical frequency u and horizontal frequency v; 0 is the mean.
"""

from functools import cache
from math import pi

import torch
from torch import nn

from jettison.core.errors import UsageError


@cache
def _matrix(block: int) -> torch.Tensor:
    place = torch.arange(block, dtype=torch.float64)
    matrix = torch.cos(pi * (place + 0.5) * place[:, None] / block) * (2 / block) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def dct_matrix(block: int) -> torch.Tensor:
    """Return the orthonormal DCT-II matrix, (block, block) float64: row k is the cosine of frequency k."""
    if block < 1:
        raise UsageError(f"block = {block}: a side of at least 1 is needed")
    return _matrix(block).clone()


def block_dct(images: torch.Tensor, block: int) -> torch.Tensor:
    """Transform every block of images.

    images: (..., channels, height, width); the sides are multiples of ``block``.
    Returns (..., block², channels, height / block, width / block), components in the order of ``u · block + v``.
    Raises UsageError for sides that ``block`` does not divide.
    Source: arXiv:2604.17476, with blocks of 4.
    """
    height, width = images.shape[-2:]
    if block < 1 or height % block or width % block:
        raise UsageError(f"block = {block}: a side that divides {height} and {width} is needed")
    matrix = dct_matrix(block).to(images)
    x = images.unflatten(-1, (width // block, block)).unflatten(-3, (height // block, block))
    x = torch.einsum("ui,...hiwj,vj->...uvhw", matrix, x, matrix)  # (..., channels, u, v, rows, columns)
    return x.flatten(-4, -3).transpose(-3, -4)  # (..., components, channels, rows, columns)


def inverse_block_dct(components: torch.Tensor, block: int) -> torch.Tensor:
    """Return the images whose components these are; the inverse of ``block_dct``.

    components: (..., block², channels, rows, columns).
    Returns (..., channels, rows · block, columns · block).
    Raises UsageError if there are not block² components.
    """
    if components.shape[-4] != block * block:
        raise UsageError(f"{components.shape[-4]} components: blocks of {block} have {block * block}")
    matrix = dct_matrix(block).to(components)
    x = components.transpose(-3, -4).unflatten(-3, (block, block))  # (..., channels, u, v, rows, columns)
    x = torch.einsum("ui,...uvhw,vj->...hiwj", matrix, x, matrix)
    return x.flatten(-2, -1).flatten(-3, -2)


class BlockDCT(nn.Module):
    """The layer of ``block_dct``: (batch, channels, height, width) to (batch, block², channels, rows, columns)."""

    def __init__(self, block: int):
        super().__init__()
        self.block = block

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return block_dct(images, self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"


class InverseBlockDCT(BlockDCT):
    """The layer of ``inverse_block_dct``."""

    def forward(self, components: torch.Tensor) -> torch.Tensor:
        return inverse_block_dct(components, self.block)
