"""Greedy by output change: drop first what changed least from the step before."""

import torch

from jettison.core.errors import UsageError
from jettison.policies.step_cache import StepCachePolicy, Tensors, Trajectory, relative_change


class OutputChange(StepCachePolicy):
    """Computes everything, and measures how much the outputs of units change from step to step.

    Its scores, cut by ``policies.cut``, give the gates of the greedy baseline.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], float] = {}
        self.runs, self.shape = 0, (0, 0)
        self.last: dict[int, Tensors] = {}

    def reset(self, trajectory: Trajectory) -> None:
        self.last, self.runs = {}, self.runs + 1

    def observe(self, step: int, unit: int, inputs: Tensors, outputs: Tensors) -> None:
        if unit in self.last:
            flat = lambda tensors: torch.cat([tensor.flatten().float() for tensor in tensors])
            change = relative_change(flat(outputs), flat(self.last[unit]))
            self.sums[step, unit] = self.sums.get((step, unit), 0.0) + change
        self.last[unit] = outputs
        self.shape = (max(self.shape[0], step + 1), max(self.shape[1], unit + 1))

    def scores(self) -> list[list[float]]:
        """Return the mean relative change of every output, (steps, units); 0 at step 0.

        Raises UsageError if nothing ran.
        """
        if not self.runs:
            raise UsageError("output change: attach the policy and run the pipeline first")
        steps, units = self.shape
        return [[self.sums.get((step, unit), 0.0) / self.runs for unit in range(units)] for step in range(steps)]
