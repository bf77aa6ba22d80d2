"""Random quantized weights, and modules that the CPU kernels compute."""

import torch

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.modules import PackedLinear, TiledLinear
from jettison.methods.quantize.rtn import rtn


def random_weight(grid: Grid, rows: int, columns: int, seed: int = 0) -> QuantizedWeight:
    """Return a random weight, rounded to ``grid``."""
    torch.manual_seed(seed)
    return rtn(torch.randn(rows, columns) * 0.02, grid, clip=False)


def tiled(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> TiledLinear:
    """Return the linear of a weight in the tile layout of the CPU kernels."""
    return PackedLinear.of(weight, bias).tiled()
