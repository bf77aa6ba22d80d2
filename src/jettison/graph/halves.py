"""Blocks without one of their halves, attention or MLP: a residual block then passes its states on.

A unit is named by its block, "5", or by a half of it, "5.attention" or "5.mlp".
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.anatomy import Family, Linear

HALVES = ("attention", "mlp")
BITS = {"attention": 1, "mlp": 2}  # Half in kernels/cpu/engine.h
ATTENTION = {"q", "k", "v", "o"}


def half_of(linear: Linear) -> str:
    return "attention" if ATTENTION & set(linear.roles) else "mlp"


def unit_names(blocks: int, halves: bool = False) -> list[str]:
    return (
        [f"{block}.{half}" for block in range(blocks) for half in HALVES] if halves else list(map(str, range(blocks)))
    )


def skipped_halves(units: Iterable[str], blocks: int) -> list[set[str]]:
    """Of each block, what is left out. Raises UsageError for a name that is no unit, and where nothing would stay."""
    found: list[set[str]] = [set() for _ in range(blocks)]
    valid = {*unit_names(blocks), *unit_names(blocks, halves=True)}
    for unit in units:
        if unit not in valid:
            raise UsageError(f"unit {unit!r}: it is a block, 0 to {blocks - 1}, or a half of one such as 1.attention")
        block, _, half = unit.partition(".")
        found[int(block)] |= {half} if half else {*HALVES}
    if all(len(each) == len(HALVES) for each in found):
        raise UsageError(f"all {blocks} blocks are skipped: at least one half of one must stay")
    return found


def run_bits(units: Iterable[str], blocks: int) -> bytes:
    """What ``NativeDecoder.forward`` takes as ``halves``: of each block what runs, when ``units`` are skipped."""
    everything = sum(BITS.values())
    return bytes(everything - sum(BITS[half] for half in each) for each in skipped_halves(units, blocks))


@contextmanager
def without(block: nn.Module, family: Family, halves: Iterable[str]) -> Iterator[None]:
    """The block runs without these halves inside: what they would add to the states is zero, and is not computed."""
    paths = {half: _path(block, family, half) for half in halves}
    modules = {half: block.get_submodule(path) for half, path in paths.items()}
    for half, module in modules.items():
        module.forward = _nothing(module, half)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def silence(block: nn.Module, family: Family, half: str) -> None:
    """As ``without``, for good; the half's own module stays as it is, for whoever else has it."""
    path = _path(block, family, half)
    silent = nn.Module()
    silent.forward = _nothing(block.get_submodule(path), half)
    block._modules[path] = silent


def _path(block: nn.Module, family: Family, half: str) -> str:
    """What the half's output comes from: the module that holds its last linear, or that linear itself."""
    last = "o" if half == "attention" else "down"
    for path, module in block.named_modules():
        if path and not list(module.children()) and last in (family.roles(path) or ()):
            return path.partition(".")[0]
    raise UsageError(f"the blocks of {family.name} models have no linear of role {last!r}: their halves are not known")


def _nothing(module: nn.Module, half: str) -> Callable:
    width = getattr(module, "out_features", None)  # where the half is a bare linear
    pair = half == "attention" or hasattr(module, "router")  # the second is attention weights, or a router's scores

    def forward(hidden_states: torch.Tensor, *_, **__):
        zeros = hidden_states.new_zeros(*hidden_states.shape[:-1], width or hidden_states.shape[-1])
        return (zeros, None) if pair else zeros

    return forward
