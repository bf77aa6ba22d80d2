"""Numbers: which are valid, and how people read them."""

from math import inf
from sys import float_info
from typing import Any

from jettison.core.errors import UsageError, shown

LAST_SEED = 2**32 - 1


def check_number(name: str, value: Any, least: float, most: float = inf, whole: bool = False) -> None:
    """Raises UsageError unless ``value`` is a number from ``least`` to ``most``; ``whole``: a whole one."""
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
    """Raises UsageError."""
    check_number("seed", seed, 0, LAST_SEED, whole=True)


def figures(value: float, digits: int = 3) -> str:
    """A number with so many digits, and all of its whole ones: 0.0123, 1.23, 1,234."""
    short = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in short or abs(float(short)) >= 1000 else short


def format_rate(rate: float) -> str:
    """Tokens per second: four digits, thousands set apart."""
    return figures(rate, 4)
