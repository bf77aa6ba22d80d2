"""RTN: round to nearest."""

import torch

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.numerics.ranges import find_range
from jettison.recipe.registry import quantizer


@quantizer("rtn", paper="arXiv:2103.13630, section III")
def rtn(weight: torch.Tensor, grid: Grid, stats: object = None, *, clip: bool = True) -> QuantizedWeight:
    """Round every weight to the nearest point of its group's grid. Needs no data.

    weight: (out, in) float32.
    clip: search each group's range for the least squared error; if False, use the full range.
    Raises UsageError if the group size does not divide ``in``.
    """
    scale, zero = find_range(grid.grouped(weight), grid, clip)
    return QuantizedWeight.nearest(weight, scale, zero, grid)
