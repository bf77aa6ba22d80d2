"""Calibration statistics of the inputs of linear layers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.graph.anatomy import Linear

LARGEST = 1e16  # of a mean squared input: squares of what a matrix makes of it must fit in float32


@dataclass
class Stats:
    """hessian: (in, in) float32, the mean of x xᵀ over the tokens seen. tokens: how many those were.

    cross: (in, in), the mean of x₀ xᵀ, where x₀ is what the original model has in place of x; None if it was not asked
    for, or if tokens do not correspond (experts: each model routes in its own way). dense: the mean of x₀ x₀ᵀ, where
    cross is there and it was asked for. absmean: (in,), the mean of |x|, if it was asked for.
    """

    hessian: torch.Tensor
    tokens: int = 0
    cross: torch.Tensor | None = None
    dense: torch.Tensor | None = None
    absmean: torch.Tensor | None = None

    @classmethod
    def empty(cls, columns: int, dense: bool = False, absmean: bool = False) -> "Stats":
        zeros = lambda: torch.zeros(columns, columns)
        mean = torch.zeros(columns) if absmean else None
        return cls(zeros(), dense=zeros() if dense else None, absmean=mean)

    @classmethod
    def of(cls, inputs: torch.Tensor, originals: torch.Tensor | None = None, dense: bool = False) -> "Stats":
        """inputs, originals: (..., in). dense: those of the originals too."""
        stats = cls.empty(inputs.shape[-1], dense)
        stats.add(inputs, originals)
        return stats

    def to(self, device: torch.device) -> "Stats":
        move = lambda matrix: None if matrix is None else matrix.to(device)
        return Stats(move(self.hessian), self.tokens, move(self.cross), move(self.dense), move(self.absmean))

    def add(self, inputs: torch.Tensor, originals: torch.Tensor | None = None) -> None:
        """inputs, originals: (..., in). Raises JettisonError for values that are NaN, or too large to be squared."""
        flat = lambda states: states.reshape(-1, states.shape[-1]).float().to(self.hessian.device)
        rows = flat(inputs)
        total = self.tokens + len(rows)
        if not total:
            return
        self.hessian.mul_(self.tokens / total).addmm_(rows.T, rows, alpha=1.0 / total)
        if self.absmean is not None:
            self.absmean.mul_(self.tokens / total).add_(rows.abs().sum(0), alpha=1.0 / total)
        if originals is not None:
            if self.cross is None:
                self.cross = torch.zeros_like(self.hessian)
            before = flat(originals)
            self.cross.mul_(self.tokens / total).addmm_(before.T, rows, alpha=1.0 / total)
            if self.dense is not None:
                self.dense.mul_(self.tokens / total).addmm_(before.T, before, alpha=1.0 / total)
        self.tokens = total
        self._check()

    def _check(self) -> None:
        of_dense = None if self.dense is None else self.dense.diagonal()
        for values in (self.hessian.diagonal(), of_dense, self.cross):  # a second moment is largest on its diagonal
            largest = 0.0 if values is None else float(torch.linalg.vector_norm(values, ord=torch.inf))  # or NaN
            if not largest <= LARGEST:
                raise JettisonError(
                    f"its inputs have a mean square of {largest:g} on the calibration text, where at most {LARGEST:g} "
                    "can be worked with: the model's activations are not sound"
                )


@dataclass
class Watch:
    """``stats``: ``inputs`` of each linear -> Stats. While ``original`` is set, inputs are kept as x₀ of the
    inputs that follow."""

    stats: dict[str, Stats] = field(default_factory=dict)
    original: bool = False
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, linear: Linear, inputs: torch.Tensor) -> None:
        if not self.original:
            try:
                self.stats[linear.inputs].add(inputs, self._kept.pop(linear.inputs, None))
            except JettisonError as error:
                raise JettisonError(f"{linear.name}: {error}") from error
        elif "expert" not in linear.roles:
            self._kept[linear.inputs] = inputs


def input_rows(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What the rows of a module's weight are multiplied with: of a linear its inputs (..., in); of a convolution the
    patches (batch, places, groups, in / groups · height · width). The groups of a convolution share their statistics,
    which makes a Hessian of them all a mean; one for each group would be exact (our simplification)."""
    if not isinstance(module, nn.Conv2d):
        return inputs
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise JettisonError(f"a convolution with padding {module.padding_mode} {module.padding} cannot be measured")
    patches = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2)  # (batch, places, groups, columns)


@contextmanager
def watch(
    module: nn.Module, prefix: str, linears: Iterable[Linear], dense: bool = False, absmean: bool = False
) -> Iterator[Watch]:
    """Collect statistics while ``module`` runs, of the originals' inputs too if ``dense``. Linears that share their
    input are counted once."""
    found, hooks = Watch(), []
    for linear in linears:
        if linear.inputs in found.stats:
            continue
        found.stats[linear.inputs] = Stats.empty(linear.columns, dense, absmean)
        inner = module.get_submodule(linear.name.removeprefix(prefix + "."))
        hooks.append(
            inner.register_forward_pre_hook(
                lambda module, args, linear=linear: found.see(linear, input_rows(module, args[0]))
            )
        )
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
