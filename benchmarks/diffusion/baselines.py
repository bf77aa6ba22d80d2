"""The baselines of DiP-GO at a given cost. Where they cannot hit a cost exactly, they get the next larger one."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.diffusion.sets import STEPS, TUNING, Sets, What
from jettison.domains.diffusion.search import SearchResult, describe
from jettison.policies.cascade import What as Reused
from jettison.policies.linear_stand_in import LinearStandIn
from jettison.policies.output_change import OutputChange
from jettison.policies.random_skip import random_scores
from jettison.policies.step_cache import COMPUTE, Decision, Reuse, StepCachePolicy, Tensors
from jettison.policies.threshold import Threshold

TUNED = 50  # images that limits are tuned on
HALVINGS, MOST = 10, 1e4  # of the interval of a limit; the largest limit
SLACK = 0.0025  # by which the ratio of a program rises until it saves enough
# What uniform caching reuses between the computed steps: outputs of the last block, residuals of all blocks, or outputs
# of attentions and MLPs (FORA, arXiv:2407.01425).
UNIFORM = {
    "uniform, blocks": ("block", "output"),
    "uniform, residuals": ("block", "residual"),
    "uniform, parts": ("part", "output"),
}


class Spread(StepCachePolicy):
    """Computes everything at ``count`` of ``calls`` steps, spread evenly, and reuses between them.

    count: every k-th step is calls / k; other counts mix two intervals.
    """

    def __init__(self, count: int, calls: int, level: str = "block", reuse: Reused = "output"):
        self.steps = {math.floor(number * calls / count) for number in range(count)}
        self.level, self.reuse = level, Reuse(reuse)

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        return COMPUTE if step in self.steps else self.reuse


def steps_at(ratio: float, steps: int = STEPS) -> int:
    """Return the fewest steps that cost at least the share 1 - ratio of a full run."""
    return math.ceil(steps * (1 - ratio) - 1e-9)


def program_of(result: SearchResult, ratio: float, how: str = "bisection") -> Any:
    """Return a program that saves at least the share ``ratio``: the first as the ratio rises by SLACK."""
    number, asked = 0, ratio
    while (program := result.program(asked, how)).costs.pruned < ratio - 1e-9:
        number += 1
        asked = ratio + number * SLACK
    return program


def limit_at(cost_of: Callable[[float], float], target: float) -> float:
    """Return the largest limit, as bisection sees it, whose cost is at least the target.

    cost_of: cost for a limit, 1 at 0, that falls as the limit rises.
    """
    low, high = 0.0, 0.1
    while high < MOST and cost_of(high) >= target:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost_of(middle) >= target else (low, middle)
    return low


def scored_baselines(sets: Sets, ratio: float, reuse: Reused) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the scores of every baseline at the cost of a pruning ratio.

    reuse: of the gates that random and greedy scores are cut to.
    """
    count = steps_at(ratio)
    yield "fewer steps", sets.scored(f"fewer-{ratio}", lambda: None, steps=count)
    for name, (level, what) in UNIFORM.items():
        make = lambda level=level, what=what: Spread(count, STEPS, level, what)
        yield name, sets.scored(f"{name.replace(', ', '-')}-{ratio}", make)
    yield "threshold", sets.scored(f"threshold-{ratio}", lambda: threshold(sets, ratio))
    yield "linear stand-in", sets.scored(f"linear-{ratio}", lambda: linear(sets, ratio))
    yield "random", sets.scored(f"random-{ratio}", lambda: at_random(sets, ratio, reuse))
    yield "greedy", sets.scored(f"greedy-{ratio}", lambda: greedy(sets, ratio, reuse))


def threshold(sets: Sets, ratio: float) -> What:
    """Return TeaCache's rule, with the limit at which it saves about the ratio."""
    cost_of = lambda limit: sets.cost(Threshold(limit), tuning())
    tuned = sets.cell(f"limit-threshold-{ratio}", lambda: {"limit": limit_at(cost_of, 1 - ratio)})
    return Threshold(tuned["limit"])


def linear(sets: Sets, ratio: float) -> What:
    """Return FastCache's stand-in, fitted to full runs, with the limit at which it saves about the ratio."""
    policy = LinearStandIn(0.0)
    sets.draw(policy, tuning())
    policy.fit()

    def cost_of(limit: float) -> float:
        policy.limit = limit
        return sets.cost(policy, tuning())

    policy.limit = sets.cell(f"limit-linear-{ratio}", lambda: {"limit": limit_at(cost_of, 1 - ratio)})["limit"]
    return policy


def at_random(sets: Sets, ratio: float, reuse: Reused) -> What:
    """Return a program of random gates."""
    sampling = sets.sampling()
    scores = random_scores(STEPS, len(sets.denoiser.transformer_blocks))
    return program_of(describe(sampling, scores, reuse, "random"), ratio)


def greedy(sets: Sets, ratio: float, reuse: Reused) -> What:
    """Return the program that closes first what changes least from step to step."""
    policy = OutputChange()
    sets.draw(policy, tuning())
    return program_of(describe(sets.sampling(), policy.scores(), reuse, "greedy by output change"), ratio)


def tuning() -> range:
    """Return the seeds that the settings of baselines are found on."""
    return range(TUNING, TUNING + TUNED)
