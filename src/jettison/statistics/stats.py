"""Calibration statistics of the inputs of linear layers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.graph.anatomy import Linear
from jettison.graph.blocks import SamePadConv2d, pad_same

LARGEST = 1e16  # the limit of a mean squared input: the squares of a matrix's outputs must fit in float32


@dataclass
class Stats:
    """Statistics of the inputs x of a linear, over the tokens added so far. x₀ are its inputs in the original model.

    hessian: (in, in) float32, the mean of x xᵀ.
    tokens: the number of tokens.
    cross: (in, in), the mean of x₀ xᵀ. None if no originals were added, as for experts: the two models route tokens
        differently, so that tokens do not correspond.
    dense: (in, in), the mean of x₀ x₀ᵀ; None if it is not collected. It is valid only if there is a ``cross``.
    absmean: (in,), the mean of |x|; None if it is not collected.
    """

    hessian: torch.Tensor
    tokens: int = 0
    cross: torch.Tensor | None = None
    dense: torch.Tensor | None = None
    absmean: torch.Tensor | None = None

    @classmethod
    def empty(cls, columns: int, dense: bool = False, absmean: bool = False) -> "Stats":
        """Make the statistics of no tokens. dense, absmean: collect these, too."""
        zeros = lambda: torch.zeros(columns, columns)
        mean = torch.zeros(columns) if absmean else None
        return cls(zeros(), dense=zeros() if dense else None, absmean=mean)

    @classmethod
    def of(cls, inputs: torch.Tensor, originals: torch.Tensor | None = None, dense: bool = False) -> "Stats":
        """Make the statistics of some inputs. inputs, originals: (..., in). dense: collect ``dense``, too."""
        stats = cls.empty(inputs.shape[-1], dense)
        stats.add(inputs, originals)
        return stats

    def to(self, device: torch.device) -> "Stats":
        """Return the statistics on a device."""
        move = lambda matrix: None if matrix is None else matrix.to(device)
        return Stats(move(self.hessian), self.tokens, move(self.cross), move(self.dense), move(self.absmean))

    def add(self, inputs: torch.Tensor, originals: torch.Tensor | None = None) -> None:
        """Add the tokens of some inputs.

        inputs, originals: (..., in), x and x₀.
        Raises JettisonError for values that are NaN, or too large to be squared.
        """
        flat = lambda states: states.reshape(-1, states.shape[-1]).float().to(self.hessian.device)
        rows = flat(inputs)  # (tokens, in)
        total = self.tokens + len(rows)
        if not total:
            return
        # All fields are running means: scale the old mean by its share of the tokens, then add the new sum / total.
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
        """Raise JettisonError if a mean is NaN or above ``LARGEST``."""
        dense_diagonal = None if self.dense is None else self.dense.diagonal()
        for values in (
            self.hessian.diagonal(),
            dense_diagonal,
            self.cross,
        ):  # the largest entries of a second moment are on its diagonal
            largest = 0.0 if values is None else float(torch.linalg.vector_norm(values, ord=torch.inf))  # or NaN
            if not largest <= LARGEST:
                raise JettisonError(
                    f"its inputs have a mean square of {largest:g} on the calibration text, but at most {LARGEST:g} "
                    "is supported: the model's activations are not sound"
                )


@dataclass
class Watch:
    """Collects the statistics of several linears while a model runs.

    stats: the key ``inputs`` of a linear -> statistics.
    original: while True, inputs are only stored, as the x₀ of the inputs that follow. A linear may be called more than
        once in a run; its calls correspond in their order.
    """

    stats: dict[str, Stats] = field(default_factory=dict)
    original: bool = False
    _originals: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def see(self, linear: Linear, inputs: torch.Tensor) -> None:
        """Add the inputs of a linear, or store them while ``original`` is set. Raises as ``Stats.add``."""
        if not self.original:
            try:
                stored = self._originals.get(linear.inputs)
                self.stats[linear.inputs].add(inputs, stored.pop(0) if stored else None)
            except JettisonError as error:
                raise JettisonError(f"{linear.name}: {error}") from error
        elif "expert" not in linear.roles:
            self._originals.setdefault(linear.inputs, []).append(inputs)


def input_rows(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the vectors with which the rows of a module's weight are multiplied.

    For a linear these are its inputs, (..., in). For a convolution they are the patches, (batch, places, groups, in /
    groups · height · width). All groups of a convolution share their statistics, so the Hessian is a mean over groups.
    A Hessian per group would be exact; this is our simplification.
    Raises JettisonError for a convolution whose padding is not a number of zeros.
    """
    if not isinstance(module, nn.Conv2d):
        return inputs
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise JettisonError(f"a convolution with padding {module.padding_mode} {module.padding} cannot be measured")
    if isinstance(module, SamePadConv2d):
        inputs = pad_same(inputs, module)
    # (batch, in · height · width of the kernel, places)
    patches = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2)  # (batch, places, groups, columns)


@contextmanager
def watch(
    module: nn.Module, prefix: str, linears: Iterable[Linear], dense: bool = False, absmean: bool = False
) -> Iterator[Watch]:
    """Collect statistics of the inputs of ``linears`` while ``module`` runs, and yield them.

    prefix: the module path of ``module``.
    dense, absmean: collect these, too (see ``Stats``).
    Linears with equal ``inputs`` are counted once.
    """
    watching, hooks = Watch(), []
    try:
        for linear in linears:
            if linear.inputs in watching.stats:
                continue
            watching.stats[linear.inputs] = Stats.empty(linear.columns, dense, absmean)
            inner = module.get_submodule(linear.name.removeprefix(prefix).removeprefix("."))
            hooks.append(
                inner.register_forward_pre_hook(
                    lambda module, args, linear=linear: watching.see(linear, input_rows(module, args[0]))
                )
            )
        yield watching
    finally:
        for hook in hooks:
            hook.remove()
