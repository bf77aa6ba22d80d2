"""Leave out one half of a block, attention or MLP: a residual block then passes its states on unchanged.

A unit is a whole block, named "5", or a half of one, named "5.attention" or "5.mlp".
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.anatomy import Family, Linear

HALVES = ("attention", "mlp")
BITS = {"attention": 1, "mlp": 2}  # the values of the enum Half in kernels/cpu/engine.h
ATTENTION = {"q", "k", "v", "o"}


def half_of(linear: Linear) -> str:
    """Return the half that a linear belongs to."""
    return "attention" if ATTENTION & set(linear.roles) else "mlp"


def unit_names(blocks: int, halves: bool = False) -> list[str]:
    """Return the names of all blocks, or of all halves of blocks."""
    return (
        [f"{block}.{half}" for block in range(blocks) for half in HALVES] if halves else list(map(str, range(blocks)))
    )


def skipped_halves(units: Iterable[str], blocks: int) -> list[set[str]]:
    """Return for every block the halves that the skipped ``units`` cover.

    Raises UsageError for a name that is not a unit, or if no half of any block would remain.
    """
    skipped: list[set[str]] = [set() for _ in range(blocks)]
    valid = {*unit_names(blocks), *unit_names(blocks, halves=True)}
    for unit in units:
        if unit not in valid:
            raise UsageError(
                f"unit {unit!r}: a unit is a block, 0 to {blocks - 1}, or a half of one such as 1.attention"
            )
        block, _, half = unit.partition(".")
        skipped[int(block)] |= {half} if half else {*HALVES}
    if all(len(halves) == len(HALVES) for halves in skipped):
        raise UsageError(f"all {blocks} blocks are skipped: at least one half of one must stay")
    return skipped


def run_bits(units: Iterable[str], blocks: int) -> bytes:
    """Return the ``halves`` argument of ``NativeDecoder.forward`` that skips ``units``.

    It is one byte per block, the sum of the ``BITS`` of the halves that run.
    """
    everything = sum(BITS.values())
    return bytes(everything - sum(BITS[half] for half in skipped) for skipped in skipped_halves(units, blocks))


@contextmanager
def without(block: nn.Module, family: Family, halves: Iterable[str]) -> Iterator[None]:
    """Run ``block`` without some ``halves`` inside a ``with`` statement: they compute nothing and add zero."""
    paths = {half: _path(block, family, half) for half in halves}
    modules = {half: block.get_submodule(path) for half, path in paths.items()}
    for half, module in modules.items():
        module.forward = _zero_forward(module, half)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def silence(block: nn.Module, family: Family, half: str) -> None:
    """Replace one half of ``block`` by a module that returns zeros, permanently.

    The module of the half itself is not changed, because other models may share it.
    """
    path = _path(block, family, half)
    silent = nn.Module()
    silent.forward = _zero_forward(block.get_submodule(path), half)
    block._modules[path] = silent


def _path(block: nn.Module, family: Family, half: str) -> str:
    """Return the path of the child of the block that computes a half's output: it holds, or is, the half's last linear.

    Raises UsageError if the block has no such linear.
    """
    last = "o" if half == "attention" else "down"
    for path, module in block.named_modules():
        if path and not list(module.children()) and last in (family.roles(path) or ()):
            return path.partition(".")[0]
    raise UsageError(f"the blocks of {family.name} models have no linear of role {last!r}: their halves are not known")


def _zero_forward(module: nn.Module, half: str) -> Callable:
    """Return a forward method that returns zeros in the form that ``module`` returns its output."""
    width = getattr(module, "out_features", None)  # set if the half is a bare linear
    # Attention also returns its weights, and an MLP with a router the router's scores.
    pair = half == "attention" or hasattr(module, "router")

    def forward(hidden_states: torch.Tensor, *_, **__):
        zeros = hidden_states.new_zeros(*hidden_states.shape[:-1], width or hidden_states.shape[-1])
        return (zeros, None) if pair else zeros

    return forward
