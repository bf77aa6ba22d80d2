"""AWQ: scale the columns of salient channels up before rounding, and their inputs down by the same factor."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.anatomy import Linear
from jettison.graph.edits import BlockView, Edit, Fold, Put, Scale
from jettison.numerics.ranges import find_range
from jettison.recipe.registry import quantizer
from jettison.statistics.stats import Stats

LEAST = 1e-4  # smallest mean input size used for a factor, as a share of the largest


@quantizer("awq", paper="arXiv:2306.00978, section 3.2", needs=("absmean", "hessian"), scope="block")
def awq(
    block: BlockView,
    grids: Mapping[Linear, Grid],
    stats: Mapping[str, Stats],
    *,
    grid_points: Annotated[int, Field(ge=1, le=1000)] = 20,
    clip: bool = True,
) -> list[Edit]:
    """Divide a linear's inputs by s and multiply its columns by s, to round weights of large inputs more finely.

    s = absmean^a, with a from 0 towards 1 in ``grid_points`` steps. The chosen a has the least
    E‖(Q(W s) / s − W) x‖², summed over all linears of a fold.

    block: the linears, and the folds, which are the places where inputs can be scaled for free (``Fold``).
    grids: of every linear.
    stats: ``Linear.inputs`` -> statistics; absmean: (in,), the mean of |x|; hessian: (in, in), the mean of x xᵀ.
    clip: search each group's range for the least squared error, columns weighted by their mean squared input.

    Returns a ``Put`` for every linear, and a ``Scale`` for everything that is scaled.

    The paper measures the error at the block's output; measuring it at the linears' outputs, from second moments, is
    our reconstruction. A linear that no fold reaches (an output matrix under fused values, a head) is rounded without
    scaling.
    """
    edits: list[Edit] = []
    factors: dict[str, torch.Tensor] = {}  # linear's name -> factor on its columns, (in,)
    weights = {linear: block.weight(linear) for linear in block.linears}
    for fold in block.folds:
        pair = _best(fold, weights, grids, stats, grid_points, clip)
        if pair is None:
            continue
        source_factor, column_factor = pair
        edits += [_divide(block, fold, name, source_factor) for name in fold.names]
        for linear in fold.consumers:
            factors[linear.name] = column_factor
            edits.append(Scale(f"{linear.name}.weight", 1, column_factor))
    # A linear may also be the source of a fold: its rows are divided too, before it is rounded.
    scales = [edit for edit in edits if isinstance(edit, Scale) and edit.axis == 0]
    rows = {edit.name.removesuffix(".weight"): edit.factor for edit in scales}
    for linear, weight in weights.items():
        factor = factors.get(linear.name)
        weight = weight if factor is None else weight * factor
        weight = weight * rows[linear.name].unsqueeze(1) if linear.name in rows else weight
        importance = _importance(stats, linear, factor)
        edits.append(Put(linear.name, _rounded(weight, grids[linear], clip, importance)))
    return edits


def _best(
    fold: Fold,
    weights: Mapping[Linear, torch.Tensor],
    grids: Mapping[Linear, Grid],
    stats: Mapping[str, Stats],
    grid_points: int,
    clip: bool,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Search the factor of a fold with the least error at the outputs of its consumers.

    Returns the divisor of the source's rows (source rows,), and the factor on the consumers' columns (in,); the two
    differ where a row of the source stands several times among the inputs. None if no input was ever active.
    """
    collected = stats[fold.consumers[0].inputs]
    if collected.absmean is None or not float(collected.absmean.max()) > 0:
        return None
    size = collected.absmean
    if fold.repeats > 1:  # a row of the source stands several times among the inputs
        size = size.view(-1, fold.repeats, fold.width).mean(1).flatten()  # (kv heads · width,)
    best, least = None, torch.inf
    for step in range(grid_points):
        source_factor = (size.clamp(min=LEAST * float(size.max()))) ** (step / grid_points)
        source_factor = source_factor / (source_factor.max() * source_factor.min()).sqrt()
        column_factor = source_factor
        if fold.repeats > 1:
            column_factor = source_factor.view(-1, 1, fold.width).expand(-1, fold.repeats, -1).flatten()  # (in,)
        loss = 0.0
        for linear in fold.consumers:
            scaled = weights[linear] * column_factor
            # Full ranges for all candidates; ranges are clipped only for the chosen factors.
            rounded = _rounded(scaled, grids[linear], False, None).dequantize()
            error = (rounded - scaled) / column_factor
            loss += float((error * (error @ collected.hessian)).sum(dtype=torch.float64))
        if loss < least:
            best, least = (source_factor, column_factor), loss
    return best


def _divide(block: BlockView, fold: Fold, name: str, factor: torch.Tensor) -> Scale:
    """Return the edit that divides the outputs of a norm or a linear by ``factor``. name: of the parameter."""
    if not fold.offset or name.endswith(".bias"):
        return Scale(name, 0, 1 / factor)
    # The norm multiplies by weight + offset, so new = (weight + offset) / factor − offset. As a factor on the weight
    # this is new / weight; a weight of 0 counts as 1e-8.
    weight = block.parameter(name).float()
    safe = torch.where(weight == 0, 1e-8, weight)
    return Scale(name, 0, ((safe + fold.offset) / factor - fold.offset) / safe)


def _importance(stats: Mapping[str, Stats], linear: Linear, factor: torch.Tensor | None) -> torch.Tensor | None:
    """Return the mean squared inputs of a linear (in,) after scaling; None if no input was ever active."""
    collected = stats.get(linear.inputs)
    if collected is None or not float(collected.hessian.diagonal().max()) > 0:
        return None
    diagonal = collected.hessian.diagonal()
    return diagonal if factor is None else diagonal / factor.square()


def _rounded(weight: torch.Tensor, grid: Grid, clip: bool, importance: torch.Tensor | None) -> QuantizedWeight:
    """Round a weight (out, in) to the nearest points of its groups' grids. importance: (in,)."""
    groups = grid.grouped(weight)  # (out, groups, width)
    by_group = None if importance is None else importance.view(groups.shape[1], -1)  # (groups, width)
    scale, zero = find_range(groups, grid, clip, by_group)
    return QuantizedWeight.nearest(weight, scale, zero, grid)
