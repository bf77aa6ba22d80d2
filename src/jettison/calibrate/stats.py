"""Statistics of what flows into a linear layer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from jettison.models import Linear


@dataclass
class Stats:
    """hessian: (in, in) float32, the mean of x xᵀ over the tokens seen. tokens: how many those were."""

    hessian: torch.Tensor
    tokens: int = 0

    @classmethod
    def of(cls, inputs: torch.Tensor) -> "Stats":
        """inputs: (..., in)."""
        stats = cls(torch.zeros(inputs.shape[-1], inputs.shape[-1]))
        stats.add(inputs)
        return stats

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: (..., in)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        total = self.tokens + len(rows)
        if total:
            self.hessian.mul_(self.tokens / total).addmm_(rows.T, rows, alpha=1.0 / total)
        self.tokens = total


@contextmanager
def watch(module: nn.Module, prefix: str, linears: Iterable[Linear]) -> Iterator[dict[str, Stats]]:
    """Collect, while the block runs: ``inputs`` of each linear -> Stats. What shares its input is counted once."""
    found: dict[str, Stats] = {}
    hooks = []
    for linear in linears:
        if linear.inputs in found:
            continue
        stats = found[linear.inputs] = Stats(torch.zeros(linear.columns, linear.columns))
        inner = module.get_submodule(linear.name.removeprefix(prefix + "."))
        hooks.append(inner.register_forward_pre_hook(lambda _, args, stats=stats: stats.add(args[0])))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
