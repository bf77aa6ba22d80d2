"""A step-cache policy at work in an ordinary pipeline: skipped units are not computed.

Example:
    handle = attach(pipe, Interval(2))
    images = pipe(...).images
    handle.detach()
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from jettison.core.errors import UsageError
from jettison.domains.diffusion.instrument import Instrument, Links
from jettison.policies.cascade import Graph
from jettison.policies.step_cache import COMPUTE, Approximate, Compute, Decision, Reuse, StepCachePolicy, Tensors

COMPUTED, REUSED, APPROXIMATED, UNREAD = "computed", "reused", "approximated", "unread"


def attach(target: Any, policy: StepCachePolicy, scheduler: Any = None) -> "Handle":
    """Run a policy in a pipeline, until ``detach`` of the returned handle is called.

    target: a pipeline with ``unet`` or ``transformer``, or such a denoiser.
    scheduler: of a denoiser without pipeline. If there is none, a run begins where the time rises.

    Guidance must be in the batch, as pipelines do it by default: one call of the denoiser per step. If the shape of the
    sample changes within a run, everything is computed at that step. Half precision and packed weights need nothing.
    With torch.compile, policies run in Python and units are compiled one by one; compile before or after attaching.
    Raises UsageError for a denoiser of an unknown class, and if a policy is attached already. A policy that does not
    suit a run raises UsageError when that run begins; so do ControlNets and adapters between blocks.
    """
    return Handle(target, policy, scheduler)


class Handle(Instrument):
    """A policy that is attached; see ``attach``.

    history: what was done with every unit at every step of the current run: ``computed``, ``reused``, ``approximated``,
        or ``unread``: skipped because no computed unit reads its outputs at this step.
    """

    def __init__(self, target: Any, policy: StepCachePolicy, scheduler: Any = None):
        super().__init__(target, scheduler, policy.level)
        self.policy = policy
        self.history: list[list[str]] = []
        self._forget()

    def _forget(self) -> None:
        """Drop all cached tensors."""
        count = len(self.places)
        self._results: list[Any] = [None] * count  # what units returned when they were computed last
        self._inputs: list[Tensors] = [()] * count  # and what they had read; empty for units without a residual
        self._residuals: list[Tensors] = [()] * count  # outputs - inputs, once they were reused
        self._links = Links(count)
        self._graph: Graph | None = None
        self._shape: torch.Size | None = None
        self._planned: list[Decision] | None = None
        self._read = [True] * count

    def counts(self) -> Counter[str]:
        """Return how often each thing was done in the current run."""
        return Counter(what for row in self.history for what in row)

    def detach(self) -> None:
        super().detach()
        self._forget()

    def call(self, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        begun, sample = self.tick(args, kwargs)
        if begun is not None:
            self._forget()
            self.history = []
            self.policy.reset(begun)
        self._plan(full=sample.shape != self._shape or self._graph is None)
        self._shape = sample.shape
        self.history.append([UNREAD] * len(self.places))
        result = original(*args, **kwargs)
        if self._graph is None:
            self._graph = self._links.graph()
        return result

    def _plan(self, full: bool) -> None:
        """Ask a policy that does not look at inputs for the decisions of a whole step, and find what is read."""
        count, step = len(self.places), self.clock.step
        self._read, self._planned = [True] * count, None
        if full:
            self._planned = [COMPUTE] * count
        elif not self.policy.looks:
            self._planned = [self.policy.decide(step, number, None) for number in range(count)]
            if self.policy.level == "block":
                reads = [not (isinstance(decision, Reuse) and decision.what == "output") for decision in self._planned]
                self._read = self._graph.read(reads)

    def unit(self, number: int, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self._read[number]:
            return self._results[number]
        place, step = self.places[number], self.clock.step
        if self._planned is not None:
            decision = self._planned[number]
        else:
            decision = self.policy.decide(step, number, place.arguments(args, kwargs))
        if isinstance(decision, Compute):
            return self._compute(number, original, args, kwargs)
        if not place.unit.aligned and decision != Reuse():
            raise UsageError(f"{place.unit.name} has no residual, and cannot be approximated: reuse its output")
        approximate = isinstance(decision, Approximate)
        self.history[-1][number] = APPROXIMATED if approximate else REUSED
        before = self._results[number]
        if decision == Reuse():
            return before
        outputs = place.outputs_of(before)
        inputs = place.arguments(args, kwargs)[: len(outputs)]  # SD3's last block returns no text
        if approximate:
            return place.returned(decision.function(inputs), before)
        if not self._residuals[number]:
            self._residuals[number] = tuple(y - x for y, x in zip(outputs, self._inputs[number], strict=False))
        return place.returned(tuple(x + r for x, r in zip(inputs, self._residuals[number], strict=True)), before)

    def _compute(self, number: int, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        place = self.places[number]
        self._results[number] = result = original(*args, **kwargs)
        if self._graph is None and self.policy.level == "block":
            self._links.note(number, args, kwargs, result)
        inputs, outputs = place.arguments(args, kwargs), place.outputs_of(result)
        self._inputs[number], self._residuals[number] = inputs if place.unit.aligned else (), ()
        self.history[-1][number] = COMPUTED
        self.policy.observe(self.clock.step, number, inputs[: len(outputs)], outputs)
        return result
