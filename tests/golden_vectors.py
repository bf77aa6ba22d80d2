"""Reads the golden vectors: tests/golden, or the folder that JETTISON_GOLDEN names."""

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
    return load_file(FOLDER / f"{name}.safetensors")


@dataclass(frozen=True)
class Case:
    file: str
    key: str
    parameters: tuple

    def __getitem__(self, name: str):
        return dict(self.parameters)[name]

    def tensor(self, name: str) -> torch.Tensor:
        return tensors(self.file)[f"{self.key}.{name}"]

    @property
    def weight(self) -> torch.Tensor:
        return tensors("inputs")[f"{self.key.split('.')[0]}.W"]

    @property
    def inputs(self) -> torch.Tensor:
        return tensors("inputs")[f"{self.key.split('.')[0]}.X"].float()

    def error_ratio(self, quantized: torch.Tensor) -> float:
        weight, inputs = self.weight.double(), self.inputs.double()
        return float(((weight - quantized.double()) @ inputs.T).square().sum() / (weight @ inputs.T).square().sum())


def golden(name: str) -> list[Case]:
    results = json.loads((FOLDER / f"{name}.json").read_text())["results"]
    flat = lambda result: tuple((k, v) for k, v in result.items() if not isinstance(v, dict | list))
    return [Case(name, result["key"], flat(result)) for result in results]
