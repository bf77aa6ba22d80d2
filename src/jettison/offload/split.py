"""The protocol of a network that is split in two, and how its parts work together.

Any network with an encoder and a decoder can be split: it needs four functions. What ``decode_offloaded`` gets is all
that leaves the device.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from jettison.offload.noise import Noise

Worker = Callable[[torch.Tensor], torch.Tensor]  # latents (batch, d) -> what decode_offloaded returns


class SplitModel(Protocol):
    """A network of which the offloaded decoder may run on a machine that is not trusted.

    latents: d, the size of what leaves the device.
    """

    latents: int

    def encode(self, inputs: Any) -> tuple[Any, torch.Tensor]:
        """Return what stays on the device, in any form, and the latents that may leave, (batch, d)."""

    def decode_local(self, kept: Any) -> Any:
        """Return the local part of the result, in any form, from what stays."""

    def decode_offloaded(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the offloaded part, (batch, ...), from latents alone: (batch, d) float32. Runs elsewhere."""

    def combine(self, local: Any, offloaded: torch.Tensor | None) -> Any:
        """Return the result. offloaded: None if there is none: the result is then made of the local part alone."""


@torch.no_grad()
def collect_latents(model: SplitModel, batches: Iterable[Any]) -> torch.Tensor:
    """Return the latents that would leave for some inputs, without noise, (n, d) float32."""
    return torch.cat([model.encode(inputs)[1].float().cpu() for inputs in batches])


@torch.no_grad()
def run(
    model: SplitModel, inputs: Any, noise: Noise | None = None, worker: Worker | None = None,
    generator: torch.Generator | None = None,
) -> Any:  # fmt: skip
    """Run a split model on a batch, with fresh noise for every latent, and return its result.

    noise: None sends latents as they are, which is for comparison only.
    worker: what decodes the latents; None means the model itself.
    generator: see ``Noise.draw``.
    """
    kept, latents = model.encode(inputs)
    sent = latents if noise is None else noise.protect(latents, generator)
    return model.combine(model.decode_local(kept), (worker or model.decode_offloaded)(sent.float()))


@torch.no_grad()
def run_local(model: SplitModel, inputs: Any) -> Any:
    """Return the result of the local part alone, as when the worker does not answer."""
    kept, _ = model.encode(inputs)
    return model.combine(model.decode_local(kept), None)
