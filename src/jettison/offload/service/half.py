"""The offloaded half of a network, as a worker runs it: a module, and the shapes of what it reads and writes."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number
from jettison.graph.dense import compute_device
from jettison.graph.described_files import load_described
from jettison.offload.noised import LARGEST

SOLE = "output"  # name of the output of a module that returns one tensor


class Half:
    """A module that maps latents (batch, d) to a tensor or a dict of tensors, each (batch, ...).

    module: it is put into eval mode, and runs without gradients, in the types of its parameters.
    latent: d; None means that of the first linear.
    outputs: name -> shape of the output of one frame, found by running the module on zeros.
    digest: of the parameters, by which a device sees that a worker computes another half.
    Raises UsageError if the module does not run on such latents or returns anything else.
    """

    def __init__(self, module: nn.Module, latent: int | None = None, where: str = "the model"):
        self.module, self.where = module.eval(), where
        self.latent = _latent(module, where) if latent is None else latent
        check_number("latent", self.latent, 1, LARGEST, whole=True)
        parameter = next(module.parameters(), torch.empty(0, device=compute_device()))
        self.device, self.dtype = parameter.device, parameter.dtype
        one, two = (self._trial(batch) for batch in (1, 2))
        if {name: shape[1:] for name, shape in one.items()} != {name: shape[1:] for name, shape in two.items()}:
            raise UsageError(f"{where}: the shapes of the outputs depend on the size of the batch: {one}, {two}")
        self.outputs = {name: tuple(shape[1:]) for name, shape in one.items()}
        self.digest = _digest(module)

    @classmethod
    def load(cls, folder: str | Path, latent: int | None = None) -> "Half":
        """Load the described model of a folder (``graph.described_files``). Raises as that does, and as ``Half``."""
        return cls(load_described(folder).to(compute_device()), latent, str(folder))

    def _trial(self, batch: int) -> dict[str, tuple[int, ...]]:
        try:
            outputs = self.run(np.zeros((batch, self.latent), np.float32))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"{self.where} does not run on latents of shape ({batch}, {self.latent}): {reason}; "
                             "name the right size with --latent") from error  # fmt: skip
        for name, value in outputs.items():
            if len(value) != batch:
                raise UsageError(f"{self.where}: output {name} has shape {value.shape} for a batch of {batch}")
        return {name: value.shape for name, value in outputs.items()}

    @torch.no_grad()
    def run(self, latents: np.ndarray) -> dict[str, np.ndarray]:
        """Run the module.

        latents: (batch, d) float32. Returns name -> (batch, ...) float32.
        """
        outputs = self.module(torch.from_numpy(np.array(latents)).to(self.device, self.dtype))
        named: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {SOLE: outputs}
        if not named or not all(isinstance(value, torch.Tensor) and value.dim() for value in named.values()):
            raise UsageError(f"{self.where} returns {shown(type(outputs).__name__)}; tensors (batch, ...) are needed")
        return {str(name): value.float().cpu().numpy() for name, value in named.items()}


def _digest(module: nn.Module) -> str:
    hasher = blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().double().contiguous().numpy())
    return hasher.hexdigest()


def _latent(module: nn.Module, where: str) -> int:
    """Return d, the size of the latents of a module that begins with a linear. Raises UsageError for another module."""
    first = next((inner for inner in module.modules() if inner._parameters), None)
    if not isinstance(first, nn.Linear):
        kind = "no parameters" if first is None else f"a {type(first).__name__} first"
        raise UsageError(f"{where} has {kind}: name the size of its latents with --latent")
    return first.in_features
