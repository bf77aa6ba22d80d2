"""GPTAQ: GPTQ towards the outputs of the original model (asymmetric calibration)."""

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
    """Run GPTQ towards the outputs that the original model computes from its own inputs, not from quantized blocks'.

    The weights that best give W x₀ from x are W C H⁻¹ (least squares), where x are the inputs that the quantized
    blocks before give, and x₀ the inputs in the original model. GPTQ starts from W moved a ``share`` of the way there;
    the whole way fits the calibration text too closely.

    weight: (out, in) float32, W.
    stats.hessian: (in, in), the mean of x xᵀ, H. stats.cross: (in, in), the mean of x₀ xᵀ, C.
    damp, act_order, clip: of GPTQ.

    If no input was ever active, or there is no ``stats.cross``, plain GPTQ is used.
    Raises JettisonError if H cannot be factored.

    GPTAQ distributes the same correction column by column; solving for it first is our reconstruction.
    """
    if stats.cross is None or never_active(stats.hessian):
        return gptq(weight, grid, stats, damp=damp, act_order=act_order, clip=clip)
    for ridge_share in dampings(damp):
        ridge = ridge_share * stats.hessian.diagonal().mean() * torch.eye(len(stats.hessian), dtype=torch.float64)
        hessian, cross = stats.hessian.double() + ridge, stats.cross.double() + ridge
        target, failed = torch.linalg.solve_ex(hessian, weight.double() @ cross, left=False)
        if not failed:
            break
    corrected = torch.lerp(weight, target.float(), share)
    return gptq(corrected, grid, stats, weight == 0, damp=damp, act_order=act_order, clip=clip)
