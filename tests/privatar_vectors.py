"""Reader of the vectors for offloading, tests/golden/privatar."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden" / "privatar"


@cache
def tensors() -> dict[str, torch.Tensor]:
    """Return the tensors."""
    return load_file(FOLDER / "vectors.safetensors")


@cache
def cases() -> dict[str, list]:
    """Return the results."""
    return json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
