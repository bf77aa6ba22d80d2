"""Prune one linear: the task that ``compress`` gives to a worker, and the checks of its result."""

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
    """Everything that a worker needs to prune one linear.

    name: of the linear, for messages.
    weight: (out, in) float32.
    stats: None if the method needs none.
    grid: quantize on it while pruning; None only prunes.
    """

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
    """Prune a weight and check the result. Runs on a GPU if there is one, but on the CPU if it quantizes too.

    Raises JettisonError, with the linear's name, if there are too few zeros or weights that are not finite.
    """
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
