"""A fixed table of gates: which unit is computed at which call. It is how a learned program runs."""

from collections.abc import Sequence
from typing import Literal

from jettison.core.errors import UsageError
from jettison.policies.step_cache import COMPUTE, Decision, Reuse, StepCachePolicy, Tensors, Trajectory


class Gates(StepCachePolicy):
    """Computes a unit where its gate is open, and reuses its last output, or residual, where the gate is closed.

    rows: a row for every call of the denoiser, with a gate for every unit; the first row is all open.
    reuse: what a closed gate reuses.
    sampler, steps: of the runs that the table is for; None means any.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[bool]],
        reuse: Literal["output", "residual"] = "output",
        sampler: str | None = None,
        steps: int | None = None,
    ):
        if not rows or not all(rows[0]) or len({len(row) for row in rows}) > 1:
            raise UsageError("gates: rows of equal length are needed, and the first row must be all open")
        self.rows, self.reuse, self.sampler, self.steps = rows, Reuse(reuse), sampler, steps

    def reset(self, trajectory: Trajectory) -> None:
        if len(trajectory.units) != len(self.rows[0]):
            raise UsageError(f"the gates are for {len(self.rows[0])} units; this denoiser has {len(trajectory.units)}")
        if self.sampler and trajectory.sampler not in (None, self.sampler):
            raise UsageError(f"the program is for the sampler {self.sampler}; this run has {trajectory.sampler}")
        if trajectory.steps is not None and self.steps not in (None, trajectory.steps):
            raise UsageError(
                f"the program is for {self.steps} steps; this run has {trajectory.steps}: ask for {self.steps}, or run "
                "without the program"
            )
        if trajectory.calls not in (None, len(self.rows)):
            raise UsageError(
                f"the program is for {len(self.rows)} calls of the denoiser; this run makes {trajectory.calls}"
            )

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        if step >= len(self.rows):
            raise UsageError(f"the program is for {len(self.rows)} calls of the denoiser; this run makes more")
        return COMPUTE if self.rows[step][unit] else self.reuse
