"""GPTQ: second-order quantization, column by column."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.numerics.columns import inverse_factor, spread_errors
from jettison.numerics.ranges import find_range
from jettison.recipe.registry import quantizer
from jettison.statistics.stats import Stats


@quantizer("gptq", paper="arXiv:2210.17323, algorithm 1", needs=("hessian",), traits=("joint",))
def gptq(
    weight: torch.Tensor,
    grid: Grid,
    stats: Stats,
    mask: torch.Tensor | None = None,
    *,
    damp: Annotated[float, Field(gt=0)] = 0.01,
    act_order: bool = False,
    clip: bool = True,
    block_size: Annotated[int, Field(ge=0)] = 0,
) -> QuantizedWeight:
    """Quantize column by column, spreading each column's error over the columns that are left.

    Columns that were never active are set to zero.

    weight: (out, in) float32.
    grid: the values that codes can stand for.
    stats.hessian: (in, in), the mean of x xᵀ over calibration tokens.
    mask: (out, in) bool, True for weights that stay zero; by default the zeros of ``weight``, so a pruned weight keeps
    its mask.
    damp: added to the Hessian's diagonal, as a share of its mean.
    act_order: quantize the columns with the largest mean squared input first. All ranges are then found before the
    first column, with groups in the original column order, so that checkpoints need no group index per column.
    clip: search each group's range for the least squared error, columns weighted by their mean squared input.
    block_size: columns per lazy update. 0: one group per block, so that each group's range is searched on weights that
    hold all earlier errors; with act_order or one group per row, 128. If a block holds several groups (128 with smaller
    groups, as in the original code), their ranges miss the errors of the current block.

    Returns codes (out, in), columns in their original order.
    Raises JettisonError if the Hessian cannot be factored.
    """
    columns = weight.shape[1]
    width = columns // grid.groups(columns)
    hessian = stats.hessian.float().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    weight = weight.masked_fill(dead, 0.0)
    importance = diagonal.clone()  # (in,), the mean squared inputs

    # With act_order a group's columns come at different times; with one group per row there are no earlier errors.
    ranges_first = act_order or width == columns
    scale = weight.new_empty(weight.shape[0], columns // width)
    zero = torch.empty_like(scale)
    if ranges_first:
        scale, zero = find_range(grid.grouped(weight), grid, clip, importance.view(-1, width))
    order = torch.argsort(diagonal, descending=True) if act_order else torch.arange(columns)
    group_of = order // width  # (in,), the group of every column in the new order
    # From here on until the end, columns are in the order in which they are quantized.
    mask = (weight == 0 if mask is None else mask | dead)[:, order]
    weight, hessian = weight[:, order].masked_fill(mask, 0.0), hessian[order][:, order]
    factor = inverse_factor(hessian, damp)

    codes = torch.empty_like(weight)

    def replace(at: int, rest: torch.Tensor) -> torch.Tensor:
        """Return the new values of column ``at`` (out,). rest: (out, columns left), the block from ``at`` on."""
        group = group_of[at]
        if not ranges_first and at % width == 0:
            # Taken from ``weight``, not from ``rest``: errors of the current block are not in ``weight`` yet.
            columns_of_group = slice(at, at + width)
            scale[:, group], zero[:, group] = find_range(
                weight[:, columns_of_group].masked_fill(mask[:, columns_of_group], 0.0),
                grid,
                clip,
                importance[columns_of_group],
            )
        code = grid.encode(rest[:, 0], scale[:, group], zero[:, group])
        codes[:, at] = torch.where(mask[:, at], zero[:, group], code)
        return grid.decode(codes[:, at], scale[:, group], zero[:, group])

    spread_errors(weight, factor, block_size or (128 if ranges_first else width), replace)
    return QuantizedWeight.of(codes[:, torch.argsort(order)], scale, zero, grid)
