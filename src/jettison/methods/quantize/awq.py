"""AWQ: scale salient channels up before rounding, and what feeds them down."""

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

LEAST = 1e-4  # of a factor


@quantizer("awq", paper="arXiv:2306.00978, section 3.2", needs=("absmean", "hessian"), scope="block")
def awq(
    block: BlockView,
    grids: Mapping[Linear, Grid],
    stats: Mapping[str, Stats],
    *,
    grid_points: Annotated[int, Field(ge=1, le=1000)] = 20,
    clip: bool = True,
) -> list[Edit]:
    """Divide a linear's inputs by s and multiply its columns, so that large inputs meet finely rounded weights.

    block: its linears and the places where inputs can be scaled for free (``Fold``). grids: of each linear. stats: by
    what linears share (``inputs``); absmean: (in,), the mean of |x|; hessian: (in, in), the mean of x xᵀ.
    s = absmean^a, with a from 0 to 1 in ``grid_points`` steps: the one with the least E‖(Q(W s) / s − W) x‖², all
    linears of the place together. clip: search each group's range for the least squared error, columns weighted by
    their mean squared input.

    The paper measures the error at the block's output; at the linears' outputs, from second moments, is ours. What no
    fold reaches (an output matrix under fused values, a head) is rounded as it is.
    """
    edits: list[Edit] = []
    factors: dict[str, torch.Tensor] = {}  # linear -> what its columns are multiplied with
    weights = {linear: block.weight(linear) for linear in block.linears}
    for fold in block.folds:
        found = _best(fold, weights, grids, stats, grid_points, clip)
        if found is None:
            continue
        small, wide = found
        edits += [_divide(block, fold, name, small) for name in fold.names]
        for linear in fold.consumers:
            factors[linear.name] = wide
            edits.append(Scale(f"{linear.name}.weight", 1, wide))
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
    """The factors of the source's rows, and of the consumers' columns. None where no input was ever active."""
    seen = stats[fold.consumers[0].inputs]
    if seen.absmean is None or not float(seen.absmean.max()) > 0:
        return None
    size = seen.absmean
    if fold.repeats > 1:  # a row of the source stands several times among the inputs
        size = size.view(-1, fold.repeats, fold.width).mean(1).flatten()  # (kv heads · width,)
    best, least = None, torch.inf
    for step in range(grid_points):
        small = (size.clamp(min=LEAST * float(size.max()))) ** (step / grid_points)
        small = small / (small.max() * small.min()).sqrt()
        wide = small
        if fold.repeats > 1:
            wide = small.view(-1, 1, fold.width).expand(-1, fold.repeats, -1).flatten()
        loss = 0.0
        for linear in fold.consumers:
            scaled = weights[linear] * wide
            rounded = _rounded(scaled, grids[linear], False, None).dequantize()
            error = (rounded - scaled) / wide
            loss += float((error * (error @ seen.hessian)).sum(dtype=torch.float64))
        if loss < least:
            best, least = (small, wide), loss
    return best


def _divide(block: BlockView, fold: Fold, name: str, factor: torch.Tensor) -> Scale:
    if not fold.offset or name.endswith(".bias"):
        return Scale(name, 0, 1 / factor)
    weight = block.parameter(name).float()  # (weight + offset) / factor = new + offset
    safe = torch.where(weight == 0, 1e-8, weight)
    return Scale(name, 0, ((safe + fold.offset) / factor - fold.offset) / safe)


def _importance(stats: Mapping[str, Stats], linear: Linear, factor: torch.Tensor | None) -> torch.Tensor | None:
    seen = stats.get(linear.inputs)
    if seen is None or not float(seen.hessian.diagonal().max()) > 0:
        return None
    diagonal = seen.hessian.diagonal()
    return diagonal if factor is None else diagonal / factor.square()


def _rounded(weight: torch.Tensor, grid: Grid, clip: bool, importance: torch.Tensor | None) -> QuantizedWeight:
    groups = grid.grouped(weight)
    wide = None if importance is None else importance.view(groups.shape[1], -1)
    scale, zero = find_range(groups, grid, clip, wide)
    return QuantizedWeight.nearest(weight, scale, zero, grid)
