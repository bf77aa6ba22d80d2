"""Reuse while the input of a block changes little: TeaCache's rule, without its fitted polynomial."""

from typing import Literal

import torch

from jettison.core.errors import UsageError
from jettison.policies.step_cache import (
    COMPUTE,
    Decision,
    Reuse,
    StepCachePolicy,
    Tensors,
    Trajectory,
    relative_change,
)


class Threshold(StepCachePolicy):
    """Adds up the relative changes of an input from step to step, and computes once the sum reaches a limit.

    limit: 0 computes everything.
    scope: ``first`` decides for all units of a step by the input of the first one, as TeaCache does; ``each`` decides
        for every unit by its own input. After a unit that reuses its output, inputs no longer change.
    reuse: ``residual``, as TeaCache does, is for units with a residual; UNets have ``output`` alone.
    Source: arXiv:2411.19108. The input of a block stands in for the modulated input, which each model names otherwise.
    """

    looks = True

    def __init__(
        self,
        limit: float,
        scope: Literal["first", "each"] = "first",
        reuse: Literal["output", "residual"] = "residual",
    ):
        if not limit >= 0:
            raise UsageError(f"threshold: limit = {limit}: a number of at least 0 is needed")
        self.limit, self.scope, self.reuse = limit, scope, Reuse(reuse)
        self.last: dict[int, torch.Tensor] = {}
        self.sums: dict[int, float] = {}

    def reset(self, trajectory: Trajectory) -> None:
        self.last, self.sums = {}, {}
        self.step_decision: Decision = COMPUTE

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        if self.scope == "first" and unit:
            return self.step_decision
        change = relative_change(inputs[0], self.last[unit]) if unit in self.last else float("inf")
        self.last[unit] = inputs[0]
        self.sums[unit] = self.sums.get(unit, 0.0) + change
        self.step_decision = self.reuse if self.sums[unit] < self.limit else COMPUTE
        return self.step_decision

    def observe(self, step: int, unit: int, inputs: Tensors, outputs: Tensors) -> None:
        if self.scope == "each" or unit == 0:
            self.last[unit], self.sums[unit] = inputs[0], 0.0
