"""What stands in front of a denoiser and its units while something is attached to it.

Three things do: a policy that skips units (running.py), a trace (tracing.py), the supernet (supernet.py).
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.domains.diffusion.clock import Clock
from jettison.domains.diffusion.denoisers import Level, Place, denoiser_of, places, row_of, tensors_in
from jettison.domains.diffusion.patches import Patches
from jettison.policies.cascade import Graph
from jettison.policies.step_cache import Trajectory

MARK = "_jettison_instrument"


class Links:
    """Finds which units read which, in one call in which everything is computed, by the identity of tensors.

    results: what the units returned.
    """

    def __init__(self, count: int):
        self.results: list[Any] = [None] * count
        self._readers: list[set[int]] = [set() for _ in range(count)]

    def note(self, number: int, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """Add a unit that was run with these arguments."""
        read = {id(tensor) for tensor in tensors_in([args, kwargs])}
        for other in range(number):
            if any(id(tensor) in read for tensor in tensors_in(self.results[other])):
                self._readers[other].add(number)
        self.results[number] = result

    def graph(self, flops: tuple[int, ...] = (), rest: int = 0) -> Graph:
        """Return the graph. Outputs that no unit reads are read by the rest of the denoiser."""
        outside = frozenset(number for number, readers in enumerate(self._readers) if not readers)
        return Graph(tuple(map(frozenset, self._readers)), outside, flops, rest)


class Instrument:
    """Replaces the forward of a denoiser and of its units, per instance. ``detach`` puts them back.

    target: a pipeline, or a denoiser.
    scheduler: of a denoiser without pipeline.
    level: the units: blocks, or parts of blocks.
    Raises UsageError for an unknown class of denoiser, and if something is attached already.

    torch.compile: the code here runs uncompiled, with the denoiser's code before and after a unit, and the code of a
    unit, as graphs of their own.
    """

    def __init__(self, target: Any, scheduler: Any = None, level: Level = "block"):
        self.denoiser = denoiser_of(target)
        if hasattr(self.denoiser, MARK):
            raise UsageError("a policy is attached to this denoiser already: detach it first")
        self._row = row_of(self.denoiser)
        self.places: list[Place] = places(self.denoiser, level)
        self._signature = signature(self.denoiser.forward)
        of_target = lambda: scheduler if isinstance(target, nn.Module) else getattr(target, "scheduler", scheduler)
        self.clock = Clock(of_target, tuple(place.unit for place in self.places))
        self._patches = Patches()
        for number, place in enumerate(self.places):
            self._patches.replace(place.module, "forward", lambda original, number=number: self._unit(number, original))
        self._patches.replace(self.denoiser, "forward", self._whole)
        setattr(self.denoiser, MARK, True)

    def _whole(self, original: Callable) -> Callable:
        @torch.compiler.disable(recursive=False)
        def forward(*args, **kwargs):
            return self.call(original, args, kwargs)

        return forward

    def _unit(self, number: int, original: Callable) -> Callable:
        @torch.compiler.disable(recursive=False)
        def forward(*args, **kwargs):
            return self.unit(number, original, args, kwargs)

        return forward

    def tick(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Trajectory | None, torch.Tensor]:
        """Count a call of the denoiser. Returns the run that begins, if one does, and the noisy sample.

        Raises UsageError for a call with arguments of ControlNets and the like, or with rows of ``graph.denoisers``.
        """
        if "packed" in kwargs:
            raise UsageError(
                f"a policy is attached to this {type(self.denoiser).__name__}: it runs in its pipeline only"
            )
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        if wrong := [name for name in self._row.caching.refused if bound.get(name) is not None]:
            raise UsageError(f"{type(self.denoiser).__name__} is called with {wrong[0]}: with that, no step is skipped")
        return self.clock.tick(bound["timestep"]), bound[next(iter(self._row.inputs))]

    def call(self, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the denoiser."""
        return original(*args, **kwargs)

    def unit(self, number: int, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a unit."""
        return original(*args, **kwargs)

    def detach(self) -> None:
        """Put everything back as it was. A second call does nothing."""
        if hasattr(self.denoiser, MARK):
            self._patches.undo()
            self.clock.stop()
            delattr(self.denoiser, MARK)

    def __enter__(self) -> "Instrument":
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()
