"""Numbers as people give and read them: sizes, rates, and what is valid."""

import re
from math import inf
from sys import float_info
from typing import Any

from jettison.errors import UsageError, shown

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
SIZE = re.compile(
    r"\s*([0-9]{0,20}\.?[0-9]{1,20}(?:e[0-9]{1,3})?)\s*([KMGT](?:i?B|i)?|B?)\s*", re.IGNORECASE | re.ASCII
)
SMALLEST, LARGEST = 1e3, 1e15  # bytes of memory that a budget may have
LAST_SEED = 2**32 - 1


def parse_bytes(size: str | float) -> float:
    """ "3GB", "3 G" -> 3e9; "3GiB" -> 3 · 2^30; a number is one of bytes. Raises UsageError that lists the units."""
    valid = "a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB is needed, such as 3GB"
    if isinstance(size, str):
        found = SIZE.fullmatch(size)
        if not found:
            raise UsageError(f"memory = {shown(size)}: {valid}")
        unit = found[2].upper()
        if not unit:
            raise UsageError(f"memory = {shown(size)} has no unit: {valid}")
        count = float(found[1]) * (1024 if "I" in unit else 1000) ** (" KMGT".find(unit[0]) if unit != "B" else 0)
    else:
        check_number("memory", size, SMALLEST, LARGEST)
        count = float(size)
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(f"memory = {shown(size)}: from 1 KB to 1000 TB are valid")
    return count


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


def format_bytes(count: float) -> str:
    """In the largest unit of which there is one, once rounded: 999,600 bytes are 1 MB."""
    for unit in ("KB", "MB", "GB", "TB"):
        if float(f"{count / UNITS[unit]:.3g}") < 1000 or unit == "TB":
            break
    return f"{figures(count / UNITS[unit])} {unit}" if float(f"{count:.3g}") >= 1000 else f"{count:.0f} B"
