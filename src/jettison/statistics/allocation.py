"""Distribute a mean sparsity over the layers of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from jettison.core.progress import bar
from jettison.encodings.pattern import Allocation, Pattern
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import dense_weight
from jettison.graph.whole import open_walk
from jettison.numerics.masks import column_norms
from jettison.recipe.registry import default_method
from jettison.statistics.data import Data
from jettison.statistics.sensitivity import sensitivity
from jettison.statistics.stats import watch

OUTLIER = 5.0  # scores above this many times the mean are outliers
LARGEST = 0.99  # the greatest sparsity of a layer, unless the recipe asks for more
HALVINGS = 50  # steps of the bisection, of an interval of length 2 or little more
LEVELS = 2  # the number of steps up, and of steps down, that are tried


def allocate(
    source: ModelFolder, patterns: Mapping[Linear, Pattern], allocation: Allocation, tokens: torch.Tensor, data: Data
) -> dict[str, float]:
    """Return the sparsity of every linear, by name. The mean over all weights stays that of ``patterns``.

    tokens: (windows, length), windows of the calibration data, for ``owl``.
    data: the calibration data for ``sensitivity``, which takes its own windows.
    Linears outside the blocks keep the sparsity of their pattern.
    """
    sparsity_of = {linear: pattern.sparsity for linear, pattern in patterns.items()}
    inside = {linear: sparsity for linear, sparsity in sparsity_of.items() if linear.block is not None}
    if allocation.kind == "owl" and inside:
        sparsity_of |= by_outliers(source, inside, allocation.spread, tokens)
    if allocation.kind == "sensitivity" and inside:
        sparsity_of |= by_sensitivity(source, inside, allocation.spread, data)
    return {linear.name: round(sparsity, 6) for linear, sparsity in sparsity_of.items()}


def by_outliers(
    source: ModelFolder, requested: Mapping[Linear, float], spread: float, tokens: torch.Tensor
) -> dict[Linear, float]:
    """Return sparsities by OWL: blocks with more outliers keep more weights.

    requested: linear -> sparsity.
    spread: half the difference between the greatest and the least shift of a block's sparsity.
    Outliers are values of |W| · ‖x‖ above five times their mean.
    Source: arXiv:2310.05175, section 4.
    """
    walk, shares = open_walk(source, tokens), {}
    blocks = sorted({linear.block for linear in requested})
    with bar("outliers", len(blocks)) as progress:
        for block in range(blocks[-1] + 1):
            linears = [linear for linear in requested if linear.block == block]
            with walk.block(block) as module, watch(module, walk.prefix(block), linears) as watching:
                for number in range(len(walk.batches)):
                    walk.advance(block, number)
                if linears:
                    shares[block] = _outliers(module, walk.prefix(block), linears, watching.stats)
                    progress.advance()
    least, most = min(shares.values()), max(shares.values())
    more = {block: 2 * spread * (share - least) / max(most - least, 1e-12) for block, share in shares.items()}
    return _shift_keeping_mean(requested, {linear: -more[linear.block] for linear in requested})


def _outliers(module: torch.nn.Module, prefix: str, linears: Iterable[Linear], stats: Mapping) -> float:
    """Return the share of a block's weights that are outliers."""
    scores = []
    for linear in linears:
        weight = dense_weight(module.get_submodule(linear.name.removeprefix(prefix).removeprefix(".")), linear)
        scores.append((weight.abs() * column_norms(stats[linear.inputs].hessian)).flatten())
    all_scores = torch.cat(scores)
    return float((all_scores > OUTLIER * all_scores.mean()).float().mean())


def by_sensitivity(
    source: ModelFolder, requested: Mapping[Linear, float], spread: float, data: Data
) -> dict[Linear, float]:
    """Return sparsities with the least expected loss.

    requested: linear -> sparsity.
    spread: the greatest change of a sparsity, up or down.

    A part is a set of linears that runtimes fuse. ``sensitivity`` estimates the loss of every part, pruned by Wanda, at
    several sparsities around its own. The choice is greedy: all parts start at their least sparsity, and the part whose
    next step costs least per weight goes first, until the mean is reached.
    """
    parts = _parts(source, requested)
    steps = [step * spread / LEVELS for step in range(-LEVELS, LEVELS + 1)]
    weights = {name: sum(linear.weights for linear in linears) for name, linears in parts.items()}
    own = {
        name: sum(requested[linear] * linear.weights for linear in linears) / weights[name]
        for name, linears in parts.items()
    }
    tried = {name: [Pattern(_shifted(own[name], step)) for step in steps] for name in parts}
    losses_of_part = sensitivity(source, parts, tried, data, method=default_method("prune_score"))
    losses = {name: [losses_of_part[name][pattern] for pattern in tried[name]] for name in parts}
    level = dict.fromkeys(parts, 0)
    asked = sum(own[name] * weights[name] for name in parts)
    sparsity = {name: tried[name][0].sparsity for name in parts}
    missing = lambda: asked - sum(sparsity[name] * weights[name] for name in parts)
    chosen = next(iter(parts))
    while missing() > 1e-6 * asked:  # it ends: with all parts at their highest step, nothing is missing
        candidates = [name for name in parts if level[name] < len(steps) - 1]
        price = lambda name: (losses[name][level[name] + 1] - losses[name][level[name]]) / weights[name]
        chosen = min(candidates, key=price)
        level[chosen] += 1
        sparsity[chosen] = tried[chosen][level[chosen]].sparsity
    sparsity[chosen] += min(missing(), 0.0) / weights[chosen]  # take back the part of the last step that was too much
    return {linear: max(sparsity[name], 0.0) for name, linears in parts.items() for linear in linears}


def _parts(source: ModelFolder, linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Group linears by what runtimes fuse.

    A part without all the linears that are fused gets a name of its own, because losses are stored by name.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.fused, []).append(linear)
    whole = Counter(linear.fused for linear in source.anatomy)
    return {
        fused if len(group) == whole[fused] else ", ".join(linear.name for linear in group): group
        for fused, group in groups.items()
    }


def _shift_keeping_mean(requested: Mapping[Linear, float], shifts: Mapping[Linear, float]) -> dict[Linear, float]:
    """Return the sparsities ``requested`` plus ``shifts``, within their limits and with the same mean over all weights.

    A common offset is added to all shifts and found by bisection.
    """
    total = lambda sparsity: sum(sparsity[linear] * linear.weights for linear in requested)
    moved = lambda offset: {linear: _shifted(requested[linear], shifts[linear] + offset) for linear in requested}
    low, high = (
        -1.0 - max(shifts.values()),
        1.0 - min(shifts.values()),
    )  # all at their lower limits, all at their upper limits
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(moved(middle)) < total(requested) else (low, middle)
    return moved(high)


def _shifted(requested: float, shift: float) -> float:
    """Return a sparsity plus a shift, within its limits 0 and ``LARGEST``, or ``requested`` if it is larger."""
    return min(max(requested + shift, 0.0), max(LARGEST, requested))
