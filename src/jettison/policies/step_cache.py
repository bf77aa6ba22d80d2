"""The protocol of step-cache policies: which parts of a denoiser are computed at which step of a run.

- A denoiser is a list of units in order of execution, and a run calls it once per step of the sampler.
- At every step a policy decides for every unit: compute it, reuse what it returned before, or approximate it.
- The first step of a run is always computed as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Tensors = tuple[torch.Tensor, ...]
Kind = Literal["block", "down", "mid", "up", "attention", "mlp"]


@dataclass(frozen=True)
class Unit:
    """A part of a denoiser that can be skipped.

    name: path of its module in the denoiser.
    kind: ``block`` of a chain; ``down``, ``mid`` or ``up`` of a UNet; ``attention`` or ``mlp`` inside a block.
    aligned: whether each output continues the input at the same position, in the same shape (x -> x + f(x)). Only such
        units have a residual, and can be approximated.
    """

    name: str
    kind: Kind
    aligned: bool


@dataclass(frozen=True)
class Trajectory:
    """A run that begins.

    calls: how often the denoiser will be called, steps: what the user asked for, sampler: the class of the scheduler;
        None where no scheduler is known. Samplers such as PNDM call a denoiser more often than they have steps.
    """

    units: tuple[Unit, ...]
    calls: int | None = None
    steps: int | None = None
    sampler: str | None = None


@dataclass(frozen=True)
class Compute:
    """Compute the unit."""


@dataclass(frozen=True)
class Reuse:
    """Reuse the last computation. what: its ``output``; or its ``residual``, output - input, added to the new input."""

    what: Literal["output", "residual"] = "output"


@dataclass(frozen=True)
class Approximate:
    """Replace the unit by a function of its inputs, which returns its outputs."""

    function: Callable[[Tensors], Tensors]


Decision = Compute | Reuse | Approximate
COMPUTE = Compute()


class StepCachePolicy:
    """The base of all policies. It computes everything.

    level: what its units are: whole blocks, or ``part``: the attentions and MLPs inside them.
    looks: whether decisions depend on the inputs of units. Decisions of a policy that does not look are asked for at
        the start of a step, and then units are skipped, too, whose outputs no computed unit reads at this step.
    """

    level: Literal["block", "part"] = "block"
    looks = False

    def reset(self, trajectory: Trajectory) -> None:
        """Begin a new run: forget all that belongs to the last one. Raises UsageError for a run that cannot be."""

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        """Return what to do with a unit at a step; not asked at step 0.

        inputs: None unless the policy looks.
        """
        return COMPUTE

    def observe(self, step: int, unit: int, inputs: Tensors, outputs: Tensors) -> None:
        """Receive the inputs and outputs of a unit that was computed."""


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    """Return the mean absolute difference of two tensors, divided by the mean absolute value of ``before``."""
    now, before = now.float(), before.float()
    return float((now - before).abs().mean() / before.abs().mean().clamp(min=1e-12))
