"""CALDERA: GPTQ of a matrix without the part that a LoRA adapter will carry."""

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
    """Quantize a matrix that recovery will give a LoRA adapter: the adapter's part is subtracted before GPTQ.

    Alternates, ``iterations`` times, between the best correction B A of the error W − Q, and GPTQ of W − B A, so that
    ‖(W − Q − B A) X‖ shrinks. Only the codes Q are kept: recovery with ``init: svd`` computes B A again. Without the
    LoRA adapter these codes are worse than GPTQ's own.

    weight: (out, in) float32.
    stats.hessian: (in, in), the mean of x xᵀ.
    rank: of the LoRA adapter.
    damp, act_order, clip: of GPTQ.

    CALDERA also quantizes B and A; we keep them in 16 bits.
    """
    quantized = gptq(weight, grid, stats, damp=damp, act_order=act_order, clip=clip)
    for _ in range(iterations):
        # a: (rank, in), b: (out, rank)
        a, b = best_correction(weight - quantized.dequantize(), stats.hessian, min(rank, *weight.shape))
        quantized = gptq(weight - b @ a, grid, stats, weight == 0, damp=damp, act_order=act_order, clip=clip)
    return quantized
