"""The protocol of a network that is split in two, and how its parts work together.

Any network with an encoder and a decoder can be split: it needs three functions, and the half that leaves as a module.
What the half reads is all that leaves the device.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from jettison.graph.described_files import save_described
from jettison.offload.noise import Noise
from jettison.offload.service.half import Half

Worker = Callable[[torch.Tensor], torch.Tensor]  # latents (batch, d) -> what the half returns


class SplitModel(Protocol):
    """A network of which a half of the decoder may run on a machine that is not trusted.

    latents: d, the size of what leaves the device.
    offloaded: the half that leaves. It maps latents (batch, d) float32 to the offloaded part, (batch, ...). It runs
        elsewhere, so it consists of described modules (``graph.described``).
    """

    latents: int
    offloaded: nn.Module

    def encode(self, inputs: Any) -> tuple[Any, torch.Tensor]:
        """Return what stays on the device, in any form, and the latents that may leave, (batch, d)."""

    def decode_local(self, kept: Any) -> Any:
        """Return the local part of the result, in any form, from what stays."""

    def combine(self, local: Any, offloaded: torch.Tensor | None) -> Any:
        """Return the result. offloaded: None if there is none: the result is then made of the local part alone."""


def plain(module: nn.Module) -> nn.Module:
    """Return a copy that computes the same with plain weights, where they are normalized (parametrized)."""
    copy = deepcopy(module).cpu()
    for part in filter(is_parametrized, list(copy.modules())):
        values = {name: chain().detach() for name, chain in part.parametrizations.items()}
        # torch's remove_parametrizations would change the class, which the copy shares with the original.
        part.__class__ = type(part).__bases__[0]
        del part._modules["parametrizations"]
        for name, value in values.items():
            part.register_parameter(name, nn.Parameter(value))
    return copy


def plain_half(model: SplitModel) -> Half:
    """Return the half that leaves as a worker runs it, a copy. Raises UsageError if it does not read the latents."""
    return Half(plain(model.offloaded), model.latents, "the half that leaves")


def save_half(model: SplitModel, folder: str | Path) -> None:
    """Write the half that leaves, and nothing else of the model: a folder for ``jettison offload serve``.

    Raises as ``plain_half`` and ``described_files.save_described``.
    """
    save_described(plain_half(model).module, folder)


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
    return model.combine(model.decode_local(kept), (worker or model.offloaded)(sent.float()))


@torch.no_grad()
def run_local(model: SplitModel, inputs: Any) -> Any:
    """Return the result of the local part alone, as when the worker does not answer."""
    kept, _ = model.encode(inputs)
    return model.combine(model.decode_local(kept), None)
