"""GPTQ: second-order quantization, column by column."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.calibrate import Stats
from jettison.errors import JettisonError
from jettison.grid import Grid, QuantizedWeight
from jettison.quantize.clip import find_range
from jettison.registry import quantizer

DAMPINGS = 7  # how often damping may grow tenfold before the Hessian counts as unusable


@quantizer("gptq", paper="arXiv:2210.17323, algorithm 1", needs=("hessian",))
def gptq(
    weight: torch.Tensor,
    grid: Grid,
    stats: Stats,
    *,
    damp: Annotated[float, Field(gt=0)] = 0.01,
    act_order: bool = False,
    clip: bool = True,
    block_size: Annotated[int, Field(ge=0)] = 0,
) -> QuantizedWeight:
    """Quantize column by column, spreading each column's error over the ones left.

    weight: (out, in) float32. stats.hessian: (in, in), the mean of x xᵀ over calibration tokens.
    damp: added to the Hessian's diagonal, as a share of its mean.
    act_order: most active columns first, with every group's range fixed beforehand (the only order that checkpoints
    without an index per column can store).
    clip: search each group's range for the least squared error, columns weighted by their mean squared input.
    block_size: columns per lazy update. A group's range is found when its block begins, so 0 (one group per block)
    uses weights that hold all errors so far; 128 with smaller groups is the original code's behaviour.
    Columns that were never active are set to zero. Raises JettisonError if the Hessian cannot be factored.
    """
    columns = weight.shape[1]
    width = columns // grid.groups(columns)
    hessian = stats.hessian.float().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    weight = weight.masked_fill(dead, 0.0)
    importance = diagonal.clone()

    ranges_first = act_order or width == columns
    scale = weight.new_empty(weight.shape[0], columns // width)
    zero = torch.empty_like(scale)
    if ranges_first:
        scale, zero = find_range(grid.grouped(weight), grid, clip, importance.view(-1, width))
    order = torch.argsort(diagonal, descending=True) if act_order else torch.arange(columns)
    group_of = order // width
    weight, hessian = weight[:, order], hessian[order][:, order]
    factor = inverse_factor(hessian, damp)

    codes = torch.empty_like(weight)
    step = block_size or (128 if ranges_first else width)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block, block_factor = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column in range(stop - start):
            at = start + column
            group = group_of[at]
            if not ranges_first and at % width == 0:
                # From ``weight``, not ``block``: errors of this very block have not reached it yet.
                here = slice(at, at + width)
                scale[:, group], zero[:, group] = find_range(weight[:, here], grid, clip, importance[here])
            value = block[:, column]
            code = grid.encode(value, scale[:, group], zero[:, group])
            error = (value - (code - zero[:, group]) * scale[:, group]) / block_factor[column, column]
            block[:, column:] -= error.unsqueeze(1) * block_factor[column, column:].unsqueeze(0)
            codes[:, at], errors[:, column] = code, error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]

    return QuantizedWeight.of(codes[:, torch.argsort(order)], scale, zero, grid)


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """The upper Cholesky factor of (hessian + damp · mean diagonal)⁻¹, with more damping if that is not definite."""
    mean = float(hessian.diagonal().mean())
    for attempt in range(DAMPINGS):
        damped = hessian.clone()
        damped.diagonal().add_(damp * 10**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
    raise JettisonError(
        f"the Hessian is not positive definite even with damp = {damp * 10 ** (DAMPINGS - 1):g}: calibrate on more text"
    )
