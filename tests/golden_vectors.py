"""Reader of the golden vectors in tests/golden, or in the folder that JETTISON_GOLDEN names."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("JETTISON_GOLDEN", Path(__file__).parent / "golden"))


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file."""
    return load_file(FOLDER / f"{name}.safetensors")


@dataclass(frozen=True)
class Case:
    """One result of an official implementation, with its parameters.

    key: the start of the names of its tensors; its first part names the inputs.
    """

    file: str
    key: str
    parameters: tuple

    def __getitem__(self, name: str):
        return dict(self.parameters)[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the result."""
        return tensors(self.file)[f"{self.key}.{name}"]

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight that was compressed, (rows, columns)."""
        return tensors("inputs")[f"{self.key.split('.')[0]}.W"]

    @property
    def inputs(self) -> torch.Tensor:
        """Return the calibration activations, (samples, columns) float32."""
        return tensors("inputs")[f"{self.key.split('.')[0]}.X"].float()

    def error_ratio(self, quantized: torch.Tensor) -> float:
        """Return the squared error of the layer's outputs, relative to the squared outputs."""
        weight, inputs = self.weight.double(), self.inputs.double()
        return float(((weight - quantized.double()) @ inputs.T).square().sum() / (weight @ inputs.T).square().sum())


def golden(name: str) -> list[Case]:
    """Return all cases of a method."""
    results = json.loads((FOLDER / f"{name}.json").read_text())["results"]
    flat = lambda result: tuple((k, v) for k, v in result.items() if not isinstance(v, dict | list))
    return [Case(name, result["key"], flat(result)) for result in results]
