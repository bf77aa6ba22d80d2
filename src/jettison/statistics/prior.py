"""What losing precision is expected to cost where nothing was measured: a prior, fitted on scribe."""

from functools import cache
from importlib.resources import files
from math import exp, log2
from typing import Any

import yaml

from jettison.encodings.grid import WHOLE_ROW, Grid


@cache
def _fitted() -> dict[str, Any]:
    return yaml.safe_load((files("jettison.statistics") / "prior.yaml").read_text(encoding="utf-8"))


LARGEST = 128  # group size that the fit has seen


def prior_loss(role: str, depth: float | None, blocks: int, grid: Grid, columns: int = LARGEST) -> float:
    """Nats per token that one unit is expected to cost on a grid.

    role: ``qkv``, ``o``, ``gate_up``, ``down`` or ``head``, perhaps after ``expert``; others are their mean.
    depth: where the block lies, from 0 to 1; None outside the blocks. blocks: how many there are; together they are
    expected to lose what scribe's lose together, each its part. columns: of its rows, the size of a group that is one.
    A log-linear fit to measured KL (benchmarks/planning/planner.py --fit-prior): right about which roles and widths
    hurt, a guess about any other model's figures. Beyond 128, twice the group size costs what the last doubling of the
    fit did.
    """
    fitted = _fitted()
    roles = fitted["roles"]
    value = roles.get(role.removeprefix("expert "), sum(roles.values()) / len(roles))
    value += fitted["bits"][grid.bits] if grid.bits in fitted["bits"] else _between(fitted["bits"], grid.bits)
    size = columns if grid.group_size == WHOLE_ROW else grid.group_size
    value += fitted["group"] * (size / LARGEST if size <= LARGEST else 1 + log2(size / LARGEST) / 2)
    if depth is None:
        return exp(value)
    linear, square = fitted["depth"]
    return exp(value + linear * depth + square * depth**2) / blocks


def recovered_part() -> float:
    """Of what 2 bits lose, the part that is left after recovery with a LoRA adapter."""
    return _fitted()["left_after_recovery"]


def _between(bits: dict[int, float], width: int) -> float:
    """Logarithms of losses fall evenly between the widths that were measured."""
    low, high = max(b for b in bits if b < width), min(b for b in bits if b > width)
    return bits[low] + (bits[high] - bits[low]) * (width - low) / (high - low)
