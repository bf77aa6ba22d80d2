"""How much of its weights each layer loses, for a given mean."""

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

OUTLIER = 5.0  # times the mean: what counts as an outlier
LARGEST = 0.99  # sparsity that a layer may get, where not more was asked for
HALVINGS = 50  # of an interval of some 2
LEVELS = 2  # steps up and down that are tried


def allocate(
    source: ModelFolder, patterns: Mapping[Linear, Pattern], allocation: Allocation, tokens: torch.Tensor, data: Data
) -> dict[str, float]:
    """The sparsity of each linear; the mean over all weights stays what ``patterns`` say.

    tokens: (windows, length) of the calibration text. data: for ``sensitivity``, which reads a part of its own. Linears
    outside the blocks keep what they have.
    """
    given = {linear: pattern.sparsity for linear, pattern in patterns.items()}
    inside = {linear: sparsity for linear, sparsity in given.items() if linear.block is not None}
    if allocation.kind == "owl" and inside:
        given |= by_outliers(source, inside, allocation.spread, tokens)
    if allocation.kind == "sensitivity" and inside:
        given |= by_sensitivity(source, inside, allocation.spread, data)
    return {linear.name: round(sparsity, 6) for linear, sparsity in given.items()}


def by_outliers(
    source: ModelFolder, given: Mapping[Linear, float], spread: float, tokens: torch.Tensor
) -> dict[Linear, float]:
    """OWL (arXiv:2310.05175, section 4): blocks keep more the more of |W| · ‖x‖ lies above five times their mean. From
    the block that keeps least to the one that keeps most is twice ``spread``."""
    walk, shares = open_walk(source, tokens), {}
    blocks = sorted({linear.block for linear in given})
    with bar("outliers", len(blocks)) as progress:
        for block in range(blocks[-1] + 1):
            here = [linear for linear in given if linear.block == block]
            with walk.block(block) as module, watch(module, walk.prefix(block), here) as watching:
                for number in range(len(walk.batches)):
                    walk.advance(block, number)
                if here:
                    shares[block] = _outliers(module, walk.prefix(block), here, watching.stats)
                    progress.advance()
    least, most = min(shares.values()), max(shares.values())
    more = {block: 2 * spread * (share - least) / max(most - least, 1e-12) for block, share in shares.items()}
    return _around(given, {linear: -more[linear.block] for linear in given})


def _outliers(module: torch.nn.Module, prefix: str, linears: Iterable[Linear], stats: Mapping) -> float:
    scores = []
    for linear in linears:
        weight = dense_weight(module.get_submodule(linear.name.removeprefix(prefix + ".")), linear)
        scores.append((weight.abs() * column_norms(stats[linear.inputs].hessian)).flatten())
    every = torch.cat(scores)
    return float((every > OUTLIER * every.mean()).float().mean())


def by_sensitivity(
    source: ModelFolder, given: Mapping[Linear, float], spread: float, data: Data
) -> dict[Linear, float]:
    """Sparsity where it costs least: of what runtimes fuse, each part is tried (by Wanda) at sparsities up to
    ``spread`` below and above its own, and all of them together lose the least that ``sensitivity`` expects. Greedy,
    step by step from the least sparsity on."""
    parts = _parts(source, given)
    steps = [step * spread / LEVELS for step in range(-LEVELS, LEVELS + 1)]
    weights = {name: sum(linear.weights for linear in of) for name, of in parts.items()}
    own = {name: sum(given[linear] * linear.weights for linear in of) / weights[name] for name, of in parts.items()}
    tried = {name: [Pattern(_limited(own[name], step)) for step in steps] for name in parts}
    found = sensitivity(source, parts, tried, data, method=default_method("prune_score"))
    losses = {name: [found[name][pattern] for pattern in tried[name]] for name in parts}
    level = dict.fromkeys(parts, 0)
    asked = sum(own[name] * weights[name] for name in parts)
    sparsity = {name: tried[name][0].sparsity for name in parts}
    missing = lambda: asked - sum(sparsity[name] * weights[name] for name in parts)
    chosen = next(iter(parts))
    while missing() > 1e-6 * asked:  # which ends: with all at their highest step, none is missing
        able = [name for name in parts if level[name] < len(steps) - 1]
        price = lambda name: (losses[name][level[name] + 1] - losses[name][level[name]]) / weights[name]
        chosen = min(able, key=price)
        level[chosen] += 1
        sparsity[chosen] = tried[chosen][level[chosen]].sparsity
    sparsity[chosen] += min(missing(), 0.0) / weights[chosen]  # the step that went too far is taken in part
    return {linear: max(sparsity[name], 0.0) for name, of in parts.items() for linear in of}


def _parts(source: ModelFolder, linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """By what runtimes fuse. A part that lacks some of it has a name of its own: losses are kept by names."""
    found: dict[str, list[Linear]] = {}
    for linear in linears:
        found.setdefault(linear.fused, []).append(linear)
    whole = Counter(linear.fused for linear in source.anatomy)
    return {
        fused if len(of) == whole[fused] else ", ".join(linear.name for linear in of): of for fused, of in found.items()
    }


def _around(given: Mapping[Linear, float], shifts: Mapping[Linear, float]) -> dict[Linear, float]:
    """``given`` moved by ``shifts`` and by what all of them have in common, so that the mean over all weights stays
    where it was although none may leave its limits."""
    total = lambda of: sum(of[linear] * linear.weights for linear in given)
    moved = lambda offset: {linear: _limited(given[linear], shifts[linear] + offset) for linear in given}
    low, high = -1.0 - max(shifts.values()), 1.0 - min(shifts.values())  # all at their least, all at their most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(moved(middle)) < total(given) else (low, middle)
    return moved(high)


def _limited(given: float, shift: float) -> float:
    return min(max(given + shift, 0.0), max(LARGEST, given))
