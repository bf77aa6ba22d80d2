"""SparseGPT: prune column by column, and quantize in the same pass if asked to."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.grid import Grid
from jettison.encodings.pattern import Pattern
from jettison.encodings.quantized import QuantizedWeight
from jettison.numerics.columns import inverse_factor, never_active, spread_errors
from jettison.numerics.masks import lowest, smallest
from jettison.numerics.ranges import find_range
from jettison.recipe.registry import pruner
from jettison.statistics.stats import Stats


@pruner("sparsegpt", paper="arXiv:2301.00774, algorithm 1", needs=("hessian",))
def sparsegpt(
    weight: torch.Tensor,
    pattern: Pattern,
    stats: Stats,
    grid: Grid | None = None,
    *,
    damp: Annotated[float, Field(gt=0)] = 0.01,
    block_size: Annotated[int, Field(ge=1)] = 128,
    clip: bool = True,
    joint: bool = False,
) -> torch.Tensor | QuantizedWeight:
    """Prune the weights that cost least by the inverse Hessian, column by column; later columns compensate.

    weight: (out, in) float32.
    stats.hessian: (in, in), the mean of x xᵀ over calibration tokens.
    grid: quantize on it in the same pass; None only prunes.
    damp: added to the Hessian's diagonal, as a share of its mean.
    block_size: columns whose mask is chosen at once, of all outputs together (N:M chooses within its own few columns).
    clip: search each group's range for the least squared error.
    joint: quantize in the same pass, on the grid of the recipe's quantize step for the same linears, which must use
    gptq. The later columns then compensate for rounding errors too.

    Returns (out, in) with zeros; the kept weights have changed. With ``grid``, returns a QuantizedWeight whose zeros
    are exactly zero. Raises JettisonError if the Hessian cannot be factored.

    The number of zeros is exact over the whole matrix, also where several blocks share it; the original code prunes one
    weight more per block. Columns that were never active are pruned first.
    """
    rows, columns = weight.shape
    hessian = stats.hessian.float()
    dead = hessian.diagonal() == 0
    if never_active(hessian):  # no input was ever active: only the weights can decide
        hessian, dead = torch.eye(columns).to(weight), torch.zeros_like(dead)
    weight, importance = weight.masked_fill(dead, 0.0), hessian.diagonal()
    factor = inverse_factor(hessian, damp)
    spread = factor.diagonal()  # (in,); a weight costs (weight / spread)² when it is pruned
    score = lambda part, start: (part / spread[start : start + part.shape[1]]).square()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    width = columns // grid.groups(columns) if grid else columns
    # A block of columns holds whole N:M groups.
    step = max(block_size // pattern.of, 1) * pattern.of if pattern.grouped else block_size
    fits = not pattern.grouped or width % pattern.of == 0
    # A forecast of the mask, for the range of a group whose mask is not chosen yet.
    likely = lambda part, start: part.masked_fill(smallest(score(part, start), pattern, "row"), 0.0) if fits else part
    if grid:
        scale, zero = find_range(grid.grouped(weight), grid, clip, importance.view(-1, width))
        codes = torch.empty_like(weight)

    def choose(start: int, block: torch.Tensor) -> torch.Tensor:
        """Return the mask of a block of columns (out, columns): as many zeros as bring the total up to the target."""
        stop = start + block.shape[1]
        if pattern.scope == "row":
            return lowest(score(block, start), pattern.zeros(stop) - pattern.zeros(start))
        count = pattern.zeros(rows * stop) - pattern.zeros(rows * start)
        return lowest(score(block, start).flatten(), count).view_as(block)

    def replace(at: int, rest: torch.Tensor) -> torch.Tensor:
        """Return the new values of column ``at`` (out,). rest: (out, columns left), the block from ``at`` on."""
        if pattern.grouped:
            if at % pattern.of == 0:
                mask[:, at : at + pattern.of] = smallest(score(rest[:, : pattern.of], at), pattern)
        elif at % step == 0:
            mask[:, at : at + rest.shape[1]] = choose(at, rest)
        if not grid:
            return rest[:, 0].masked_fill(mask[:, at], 0.0)
        group = at // width
        if at % width == 0 and width < columns:
            # ``rest`` holds all errors so far; it can be used if the whole group lies in this block. The range need
            # not contain the weights that will probably be pruned.
            weights = rest[:, :width] if rest.shape[1] >= width else weight[:, at : at + width]
            scale[:, group], zero[:, group] = find_range(likely(weights, at), grid, clip, importance[at : at + width])
        code = grid.encode(rest[:, 0], scale[:, group], zero[:, group])
        codes[:, at] = torch.where(mask[:, at] | dead[at], zero[:, group], code)
        return grid.decode(codes[:, at], scale[:, group], zero[:, group])

    spread_errors(weight, factor, step, replace)
    return QuantizedWeight.of(codes, scale, zero, grid) if grid else weight
