"""Skip units at random: what every other policy must beat."""

import torch

from jettison.core.errors import UsageError
from jettison.policies.step_cache import COMPUTE, Decision, Reuse, StepCachePolicy, Tensors


class RandomSkip(StepCachePolicy):
    """Reuses the output of a unit with a probability. The choice depends on the seed, the step and the unit alone."""

    def __init__(self, probability: float, seed: int = 0):
        if not 0 <= probability <= 1:
            raise UsageError(f"random: probability = {probability}: a number from 0 to 1 is needed")
        self.probability, self.seed = probability, seed

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        return COMPUTE if _row(step, unit + 1, self.seed)[unit] >= self.probability else Reuse()


def random_scores(steps: int, units: int, seed: int = 0) -> list[list[float]]:
    """Return random scores, (steps, units), for ``policies.cut``: random pruning at a given cost.

    A score depends on the seed, the step and the unit alone.
    """
    return [_row(step, units, seed) for step in range(steps)]


def _row(step: int, units: int, seed: int) -> list[float]:
    """Return the scores of a step. They are drawn one by one, so that they do not depend on the number of units."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return [float(torch.rand(1, generator=rng)) for _ in range(units)]
