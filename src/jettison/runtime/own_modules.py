"""A loaded model that transformers does not have, made from its description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.dense import compute_device
from jettison.graph.described_files import load_described


@dataclass
class LoadedModule:
    """A model that a folder describes (``graph.described_files``), ready to run. It has no config and no tokenizer.

    folder: the folder that it was loaded from.
    model: a module that maps one tensor to one tensor.
    """

    folder: Path
    model: nn.Module

    @classmethod
    def of(cls, folder: Path, dtype: torch.dtype | None = None) -> "LoadedModule":
        """Load the model of a folder onto the device where it will run. Raises as ``load_described`` does.

        dtype: type of all values in floating point; None means the types that they are stored in.
        """
        return cls(folder, load_described(folder).to(device=compute_device(), dtype=dtype))

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the model once. inputs: what its first module reads. Returns what its last module writes."""
        return self.model(inputs.to(compute_device()))

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Raise UsageError: such a model writes no text."""
        raise UsageError(f"{self.folder} is no language model: it writes no text")

    stream = generate
