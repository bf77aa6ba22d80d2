"""The supernet of DiP-GO: a run in which a gate mixes every unit's output with that of the step before.

- Gates are 0 or 1 in the forward pass, so that the run is exactly the one of the program, and have gradients.
- Units with closed gates are computed here, too: the gradient of a gate is what its opening would change.
- What a closed gate reuses is what the program would have: outputs that no unit reads are not kept for later steps.
- Each call of the denoiser is a checkpoint: between calls only latents and cached outputs stay in memory. These still
  grow with steps times units; the activations inside units do not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from jettison.domains.diffusion.denoisers import map_tensors
from jettison.domains.diffusion.instrument import Instrument
from jettison.policies.cascade import Graph, What


class Supernet(Instrument):
    """A denoiser with gates. Without gates it is the plain denoiser.

    target, scheduler: as for ``attach``.
    graph: of the denoiser.
    reuse: what closed gates reuse.
    checkpointing: recompute each call of the denoiser in the backward pass.
    Source: arXiv:2410.16942, section 3.
    """

    def __init__(
        self, target: Any, graph: Graph, scheduler: Any = None, reuse: What = "output", checkpointing: bool = True
    ):
        super().__init__(target, scheduler)
        self.graph, self.reuse, self.checkpointing = graph, reuse, checkpointing
        self.gates: torch.Tensor | None = None  # (calls, units), 0 or 1
        self._cache: list[Any] = []
        self._frame: _Frame | None = None

    def call(self, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.gates is None:
            return original(*args, **kwargs)
        begun, _ = self.tick(args, kwargs)
        if begun is not None:
            self._cache = [None] * len(self.places)
        row = self.gates[self.clock.step]
        opened = [bool(gate) for gate in row.detach() > 0.5]
        wanted = self.graph.read([gate or self.reuse == "residual" for gate in opened])
        cache, first = self._cache, begun is not None

        def run(row: torch.Tensor) -> tuple[Any, list[Any]]:
            self._frame = frame = _Frame(row, wanted, cache, first)
            try:
                return original(*args, **kwargs), frame.new
            finally:
                self._frame = None

        if self.checkpointing and torch.is_grad_enabled() and not first:
            result, self._cache = checkpoint(run, row, use_reentrant=False)
        else:
            result, self._cache = run(row)
        return result

    def unit(self, number: int, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        frame, place, result = self._frame, self.places[number], original(*args, **kwargs)
        if frame is None:
            return result
        if self.reuse == "output":
            kept = mixed = result if frame.first else frame.mix(number, result, frame.cache[number])
        else:
            inputs, outputs = place.arguments(args, kwargs), place.outputs_of(result)
            residuals = tuple(y - x for x, y in zip(inputs, outputs, strict=False))
            kept = residuals if frame.first else frame.mix(number, residuals, frame.cache[number])
            mixed = result
            if not frame.first:
                reused = tuple(x + r for x, r in zip(inputs, frame.cache[number], strict=False))
                mixed = frame.mix(number, result, place.returned(reused, result))
        frame.new[number] = kept if frame.first or frame.wanted[number] else frame.cache[number]
        return mixed


class _Frame:
    """One call of the denoiser.

    row: the gates, (units).
    wanted: the units whose outputs are needed.
    cache: what closed gates reuse; new: what they reuse at the next call.
    first: whether the call is the first of a run, in which all gates are open.
    """

    def __init__(self, row: torch.Tensor, wanted: list[bool], cache: list[Any], first: bool):
        self.row, self.wanted, self.cache, self.first = row, wanted, cache, first
        self.new: list[Any] = [None] * len(cache)

    def mix(self, number: int, computed: Any, cached: Any) -> Any:
        """Return gate · computed + (1 - gate) · cached, for all tensors of a unit."""
        gate = self.row[number]
        return map_tensors(lambda new, old: gate.to(new.dtype) * new + (1 - gate).to(new.dtype) * old, computed, cached)
