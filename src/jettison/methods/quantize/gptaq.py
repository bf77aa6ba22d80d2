"""GPTQ toward the original model's outputs: asymmetric calibration."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.methods.quantize.gptq import gptq
from jettison.numerics.columns import dampings, never_active
from jettison.recipe.registry import quantizer
from jettison.statistics.stats import Stats


@quantizer("gptaq", paper="arXiv:2504.02692, equation 5", needs=("hessian", "cross"))
def gptaq(
    weight: torch.Tensor,
    grid: Grid,
    stats: Stats,
    *,
    share: Annotated[float, Field(ge=0, le=1)] = 0.5,
    damp: Annotated[float, Field(gt=0)] = 0.01,
    act_order: bool = False,
    clip: bool = True,
) -> QuantizedWeight:
    """GPTQ, aiming at what the original model computes here from its own inputs, not from the quantized ones.

    weight: (out, in) float32. stats.hessian: mean of x xᵀ over the inputs x that the quantized blocks before give;
    stats.cross: mean of x₀ xᵀ, x₀ being the original model's. The least-squares weights for W x₀ given x are
    W C H⁻¹; a ``share`` of that step is taken before GPTQ begins (all of it fits the calibration text too closely).
    GPTAQ distributes the same correction column by column; solving for it first is our reconstruction. Where no input
    was ever active there is nothing to correct, and GPTQ remains. Raises JettisonError if H cannot be factored.
    """
    if stats.cross is None or never_active(stats.hessian):
        return gptq(weight, grid, stats, damp=damp, act_order=act_order, clip=clip)
    for more in dampings(damp):
        ridge = more * stats.hessian.diagonal().mean() * torch.eye(len(stats.hessian), dtype=torch.float64)
        hessian, cross = stats.hessian.double() + ridge, stats.cross.double() + ridge
        target, failed = torch.linalg.solve_ex(hessian, weight.double() @ cross, left=False)
        if not failed:
            break
    corrected = torch.lerp(weight, target.float(), share)
    return gptq(corrected, grid, stats, weight == 0, damp=damp, act_order=act_order, clip=clip)
