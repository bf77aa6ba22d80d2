"""A prior for the loss from quantization, for models without measured sensitivities. It is fitted on scribe."""

from functools import cache
from importlib.resources import files
from math import exp, log2
from typing import Any

import yaml

from jettison.encodings.grid import WHOLE_ROW, Grid


@cache
def _fitted() -> dict[str, Any]:
    """Return the coefficients of the fit."""
    return yaml.safe_load((files("jettison.statistics") / "prior.yaml").read_text(encoding="utf-8"))


LARGEST = 128  # the largest group size in the fit


def prior_loss(role: str, depth: float | None, blocks: int, grid: Grid, columns: int = LARGEST) -> float:
    """Return the expected loss of one unit on a grid, in nats per token.

    role: ``qkv``, ``o``, ``gate_up``, ``down`` or ``head``, optionally after ``expert``; the mean is used for others.
    depth: the place of the block, from 0 (first) to 1 (last); None outside the blocks.
    blocks: the number of blocks. All blocks together are expected to lose as much as scribe's together.
    columns: the length of a row, which is the group size of a grid with one group per row.

    The prior is a log-linear fit to measured KL (benchmarks/planning/planner.py --fit-prior). It ranks roles and widths
    correctly, but for other models its figures are guesses. Above 128, doubling the group size costs as much as the
    last doubling in the fit.
    """
    fitted = _fitted()
    roles = fitted["roles"]
    value = roles.get(role.removeprefix("expert "), sum(roles.values()) / len(roles))  # the logarithm of the loss
    value += fitted["bits"][grid.bits] if grid.bits in fitted["bits"] else _between(fitted["bits"], grid.bits)
    size = columns if grid.group_size == WHOLE_ROW else grid.group_size
    value += fitted["group"] * (size / LARGEST if size <= LARGEST else 1 + log2(size / LARGEST) / 2)
    if depth is None:
        return exp(value)
    linear, square = fitted["depth"]
    return exp(value + linear * depth + square * depth**2) / blocks


def recovered_part() -> float:
    """Return the share of the loss at 2 bits that remains after recovery with a LoRA adapter."""
    return _fitted()["left_after_recovery"]


def _between(bits: dict[int, float], width: int) -> float:
    """Interpolate the logarithm of the loss linearly between the measured bit widths below and above ``width``."""
    low, high = max(b for b in bits if b < width), min(b for b in bits if b > width)
    return bits[low] + (bits[high] - bits[low]) * (width - low) / (high - low)
