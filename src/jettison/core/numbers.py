"""Checks and formats numbers."""

from math import inf
from sys import float_info
from typing import Any

from jettison.core.errors import UsageError, shown

LAST_SEED = 2**32 - 1


def check_number(name: str, value: Any, least: float, most: float = inf, whole: bool = False) -> None:
    """Check that ``value`` is a number from ``least`` to ``most``, and whole if ``whole``. Raises UsageError."""
    kind = int if whole else int | float
    if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or not least <= value <= most
        or abs(value) > float_info.max
    ):
        limit = f"of at least {least:,}" if most == inf else f"from {least:,} to {most:,}"
        raise UsageError(f"{name} = {shown(value)}: a {'whole ' * whole}number {limit} is needed")


def check_seed(seed: Any) -> None:
    """Check that a seed is a whole number from 0 to 2^32 − 1. Raises UsageError."""
    check_number("seed", seed, 0, LAST_SEED, whole=True)


def figures(value: float, digits: int = 3) -> str:
    """Format a number with so many significant digits, but never fewer than its whole part has: 0.0123, 1.23, 1,234."""
    short = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in short or abs(float(short)) >= 1000 else short


def format_rate(rate: float) -> str:
    """Format tokens per second with four digits and separated thousands."""
    return figures(rate, 4)
