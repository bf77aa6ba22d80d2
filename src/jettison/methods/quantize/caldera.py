"""GPTQ on what a LoRA adapter leaves over."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.methods.quantize.gptq import gptq
from jettison.numerics.low_rank import best_correction
from jettison.recipe.registry import quantizer
from jettison.statistics.stats import Stats


@quantizer("caldera", paper="arXiv:2405.18886, algorithm 1", needs=("hessian",))
def caldera(
    weight: torch.Tensor,
    grid: Grid,
    stats: Stats,
    *,
    rank: Annotated[int, Field(ge=1, le=8192)] = 8,
    iterations: Annotated[int, Field(ge=1)] = 20,
    damp: Annotated[float, Field(gt=0)] = 0.01,
    act_order: bool = False,
    clip: bool = True,
) -> QuantizedWeight:
    """Codes for a matrix that recovery will give a LoRA adapter of ``rank``: what that carries best is not quantized.

    weight: (out, in) float32. stats.hessian: (in, in), the mean of x xᵀ. Alternates, ``iterations`` times, between the
    best correction B A of the error W − Q and GPTQ of W − B A, so that ‖(W − Q − B A) X‖ shrinks; damp, act_order and
    clip are GPTQ's. Only the codes are kept: recovery's ``init: svd`` finds B A again. Without the LoRA adapter these
    codes are worse than GPTQ's own. CALDERA also quantizes B and A, which we leave to 16 bits.
    """
    quantized = gptq(weight, grid, stats, damp=damp, act_order=act_order, clip=clip)
    for _ in range(iterations):
        a, b = best_correction(weight - quantized.dequantize(), stats.hessian, min(rank, *weight.shape))
        quantized = gptq(weight - b @ a, grid, stats, weight == 0, damp=damp, act_order=act_order, clip=clip)
    return quantized
