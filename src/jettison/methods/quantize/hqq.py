"""HQQ: half-quadratic quantization, which searches zero points without data."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.core.errors import UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.recipe.registry import quantizer

LARGEST_INVERSE_SCALE = 2e4


@quantizer("hqq", paper="Badri & Shaji 2023, mobiusml.github.io/hqq_blog")
def hqq(
    weight: torch.Tensor,
    grid: Grid,
    stats: object = None,
    *,
    iterations: Annotated[int, Field(ge=0)] = 20,
    norm: Annotated[float, Field(gt=0, lt=1)] = 0.7,
    beta: Annotated[float, Field(gt=0)] = 10.0,
    growth: Annotated[float, Field(ge=1)] = 1.01,
    round_zero: bool = True,
) -> QuantizedWeight:
    """Choose each group's zero point so that most errors are small and few are large. Needs no data.

    Minimizes the lp norm of the error with p = ``norm`` < 1. Alternates a shrinkage step on the error with the
    closed-form zero point, until the mean absolute error of the whole weight stops falling.

    weight: (out, in) float32.
    iterations: at most.
    beta: sets the threshold of the shrinkage, which falls as beta grows.
    growth: factor on beta after every iteration.
    round_zero: round the zero points to integers, as checkpoints store them. If False they stay fractional, which is
    for study only.

    Raises UsageError for a symmetric grid, which has no zero point to choose.
    """
    if grid.symmetric:
        raise UsageError("quantize method 'hqq' chooses zero points: it needs symmetric: false")
    groups = grid.grouped(weight)  # (out, groups, width)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if round_zero:  # a zero point that is a code needs a range that contains zero
        low, high = low.clamp(max=0), high.clamp(min=0)
    inverse = (grid.max_code / (high - low)).clamp(max=LARGEST_INVERSE_SCALE)
    inverse = 1.0 / (1.0 / inverse).to(grid.scale_dtype).float()  # 1 / the scale as it is stored, (out, groups, 1)
    zero = -low * inverse

    least = torch.inf
    for _ in range(iterations):
        codes = torch.round(groups * inverse + zero).clamp(0, grid.max_code)
        error = groups - (codes - zero) / inverse
        shrunk = torch.sign(error) * torch.relu(error.abs() - error.abs().pow(norm - 1) / beta)
        zero = torch.mean(codes - (groups - shrunk) * inverse, -1, keepdim=True)
        beta *= growth
        mean_error = float(error.abs().mean())
        if mean_error >= least:
            break
        least = mean_error

    if round_zero:
        zero = torch.round(zero).clamp(0, grid.max_code)
    codes = torch.round(groups * inverse + zero).clamp(0, grid.max_code)
    scale = (1.0 / inverse).squeeze(-1)
    if round_zero:
        return QuantizedWeight.of(codes.reshape(weight.shape), scale, zero.squeeze(-1), grid)
    fractional = zero.squeeze(-1)
    return QuantizedWeight(codes.reshape(weight.shape).to(torch.uint8), scale.to(grid.scale_dtype), fractional, grid)
