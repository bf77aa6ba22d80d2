"""One linear, pruned: what ``compress`` gives to workers, and what is looked at afterwards."""

from dataclasses import dataclass
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import Grid
from jettison.encodings.pattern import Pattern
from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.dense import compute_device
from jettison.recipe import registry
from jettison.statistics.stats import Stats


@dataclass(frozen=True)
class Task:
    """A matrix (out, in) float32 called ``name``, and all that its method wants. grid: to quantize it while pruning."""

    name: str
    method: str
    options: dict[str, Any]
    weight: torch.Tensor
    pattern: Pattern
    stats: Stats | None
    grid: Grid | None = None

    def __repr__(self) -> str:
        return f"{self.name} ({self.method} to {self.pattern})"


def run_task(task: Task) -> torch.Tensor | QuantizedWeight:
    """The pruned weight, its zeros counted; made on a GPU where there is one, unless it is quantized too. Raises
    JettisonError, with the matrix's name, if they are too few or what
    is left is not finite."""
    method = registry.find("prune", task.method).function
    device = compute_device() if task.grid is None else torch.device("cpu")
    stats = task.stats and task.stats.to(device)
    grid = () if task.grid is None else (task.grid,)
    try:
        pruned = method(task.weight.to(device), task.pattern, stats, *grid, **task.options)
        pruned = pruned if isinstance(pruned, QuantizedWeight) else pruned.cpu()
        dense = pruned.dequantize() if isinstance(pruned, QuantizedWeight) else pruned
        if not torch.isfinite(dense).all():
            raise JettisonError(f"{task.method} left weights that are not finite: calibrate on more text")
        task.pattern.check(dense)
    except JettisonError as error:
        raise type(error)(f"{task.name}: {error}") from error
    return pruned
