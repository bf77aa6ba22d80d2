"""How much of its weights each layer loses, for a given mean."""

from collections.abc import Iterable, Mapping

import torch

from jettison.calibrate import watch
from jettison.calibrate.sensitivity import sensitivity
from jettison.models import Linear, ModelFolder, Walk
from jettison.models.modules import dense_weight
from jettison.pattern import Allocation, Pattern
from jettison.progress import bar
from jettison.prune.masks import column_norms

OUTLIER = 5.0  # times the mean: what counts as an outlier
LARGEST = 0.99
LEVELS = 2  # steps up and down that are tried


def allocate(
    source: ModelFolder, patterns: Mapping[Linear, Pattern], allocation: Allocation, tokens: torch.Tensor, text: str
) -> dict[str, float]:
    """The sparsity of each linear; the mean over all weights stays what ``patterns`` say.

    tokens: (windows, length) of the calibration text. text: its name, for ``sensitivity``, which reads a part of its
    own. Linears outside the blocks keep what they have.
    """
    given = {linear: pattern.sparsity for linear, pattern in patterns.items()}
    inside = {linear: sparsity for linear, sparsity in given.items() if linear.block is not None}
    if allocation.kind == "owl" and inside:
        given |= by_outliers(source, inside, allocation.spread, tokens)
    if allocation.kind == "sensitivity" and inside:
        given |= by_sensitivity(source, inside, allocation.spread, text)
    return {linear.name: round(sparsity, 6) for linear, sparsity in given.items()}


def by_outliers(
    source: ModelFolder, given: Mapping[Linear, float], spread: float, tokens: torch.Tensor
) -> dict[Linear, float]:
    """OWL (arXiv:2310.05175, section 4): blocks keep more the more of |W| · ‖x‖ lies above five times their mean. From
    the block that keeps least to the one that keeps most is twice ``spread``."""
    walk, shares = Walk(source, tokens), {}
    blocks = sorted({linear.block for linear in given})
    with bar("outliers", len(blocks)) as progress:
        for block in range(blocks[-1] + 1):
            here = [linear for linear in given if linear.block == block]
            with walk.block(block) as module, watch(module, walk.prefix(block), here) as watching:
                walk.advance(block, walk.hidden)
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


def by_sensitivity(source: ModelFolder, given: Mapping[Linear, float], spread: float, text: str) -> dict[Linear, float]:
    """Sparsity where it costs least: of what engines fuse, each part is tried (by Wanda) at sparsities up to ``spread``
    below and above its own, and all of them together lose the least that ``sensitivity`` expects. Greedy, step by step
    from the least sparsity on."""
    parts: dict[str, list[Linear]] = {}
    for linear in given:
        parts.setdefault(linear.fused, []).append(linear)
    steps = [step * spread / LEVELS for step in range(-LEVELS, LEVELS + 1)]
    limit = lambda sparsity: min(max(sparsity, 0.0), LARGEST)
    tried = {name: [Pattern(limit(given[of[0]] + step)) for step in steps] for name, of in parts.items()}
    text = "books" if text == "synthetic" else text
    found = sensitivity(source, parts, tried, method="wanda", text=text)
    losses = {name: [found[name][pattern] for pattern in tried[name]] for name in parts}
    weights = {name: sum(linear.weights for linear in of) for name, of in parts.items()}
    level = dict.fromkeys(parts, 0)
    asked = sum(given[linear] * linear.weights for linear in given)
    sparsity = {name: tried[name][0].sparsity for name in parts}
    missing = lambda: asked - sum(sparsity[name] * weights[name] for name in parts)
    while missing() > 1e-6 * asked:
        able = [name for name in parts if level[name] < len(steps) - 1]
        if not able:
            break
        price = lambda name: (losses[name][level[name] + 1] - losses[name][level[name]]) / weights[name]
        chosen = min(able, key=price)
        level[chosen] += 1
        sparsity[chosen] = tried[chosen][level[chosen]].sparsity
    last = missing() / weights[chosen] if any(level.values()) else 0.0
    sparsity[chosen] += last  # the step that went too far is taken in part
    return {linear: limit(sparsity[name]) for name, of in parts.items() for linear in of}


def _around(given: Mapping[Linear, float], shifts: Mapping[Linear, float]) -> dict[Linear, float]:
    """``given`` moved by ``shifts``, whose mean over all weights is taken off."""
    mean = sum(shifts[linear] * linear.weights for linear in given) / sum(linear.weights for linear in given)
    return {linear: min(max(given[linear] + shifts[linear] - mean, 0.0), LARGEST) for linear in given}
