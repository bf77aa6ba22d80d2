"""What the units of a denoiser cost and which reads which, traced in one call.

FLOPs are those of matrix products, convolutions and attention, as PyTorch's FlopCounterMode counts them, two per
multiplication with addition; products with packed weights count like dense ones.
"""

from collections.abc import Callable
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jettison.core.errors import UsageError
from jettison.domains.diffusion.instrument import Instrument, Links
from jettison.kernels import ops
from jettison.policies.cascade import Graph


class CallsEnough(Exception):
    """Ends a run of a pipeline from inside, after the call that it was run for."""


def packed_flops(x_shape: list[int], *args: Any, out_shape: list[int], **kwargs: Any) -> int:
    """Return the FLOPs of a product with packed weights."""
    return 2 * prod(out_shape) * x_shape[-1]


def attention_flops(query: list[int], key: list[int], value: list[int], *args: Any, **kwargs: Any) -> int:
    """Return the FLOPs of attention, from shapes (batch, heads, tokens, width)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def flop_counter() -> FlopCounterMode:
    """Return a counter of the FLOPs in a ``with`` block, with packed weights and the attention of CPUs."""
    assert ops  # registers the operators
    packed = [torch.ops.jettison.quant_linear, torch.ops.jettison.tiled_linear]
    formulas: dict[Any, Any] = dict.fromkeys(packed, packed_flops)
    formulas[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = attention_flops
    return FlopCounterMode(display=False, custom_mapping=formulas)


class Trace(Instrument):
    """Counts the FLOPs of the units in the next call of a denoiser, and ends the run after it."""

    graph: Graph | None = None

    def call(self, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        count = len(self.places)
        self._flops, self._links = [0] * count, Links(count)
        with torch.no_grad(), flop_counter() as self._counter:
            original(*args, **kwargs)
        rest = self._counter.get_total_flops() - sum(self._flops)
        self.graph = self._links.graph(tuple(self._flops), rest)
        raise CallsEnough

    def unit(self, number: int, original: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        before = self._counter.get_total_flops()
        result = original(*args, **kwargs)
        self._flops[number] = self._counter.get_total_flops() - before
        self._links.note(number, args, kwargs, result)
        return result


def trace(target: Any, run: Callable[[], Any], scheduler: Any = None) -> Graph:
    """Return which units read which, and what they cost for the batch that ``run`` uses.

    run: calls the pipeline, or the denoiser; it is ended after the first call of the denoiser.
    Raises UsageError if the denoiser is not called.
    """
    with Trace(target, scheduler) as tracer, suppress(CallsEnough):
        run()
    if tracer.graph is None:
        raise UsageError(f"the run does not call the denoiser {type(tracer.denoiser).__name__}")
    return tracer.graph
