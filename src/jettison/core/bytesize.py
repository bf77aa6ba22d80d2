"""Parses and formats sizes in bytes: 3GB, 512 MiB."""

import re

from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number, figures

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
SIZE = re.compile(
    r"\s*([0-9]{0,20}\.?[0-9]{1,20}(?:e[0-9]{1,3})?)\s*([KMGT](?:i?B|i)?|B?)\s*", re.IGNORECASE | re.ASCII
)
SMALLEST, LARGEST = 1e3, 1e15  # bytes of memory that a budget may have


def parse_bytes(size: str | float) -> float:
    """Return a size in bytes: "3GB" and "3 G" are 3e9, "3GiB" is 3 · 2^30, a number is in bytes.

    Raises UsageError, which lists the units.
    """
    valid = "a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB is needed, such as 3GB"
    if isinstance(size, str):
        match = SIZE.fullmatch(size)
        if not match:
            raise UsageError(f"memory = {shown(size)}: {valid}")
        unit = match[2].upper()
        if not unit:
            raise UsageError(f"memory = {shown(size)} has no unit: {valid}")
        count = float(match[1]) * (1024 if "I" in unit else 1000) ** (" KMGT".find(unit[0]) if unit != "B" else 0)
    else:
        check_number("memory", size, SMALLEST, LARGEST)
        count = float(size)
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(f"memory = {shown(size)}: from 1 KB to 1000 TB are valid")
    return count


def format_bytes(count: float) -> str:
    """Format a size in the largest unit that gives at least 1 after rounding: 999,600 bytes are 1 MB."""
    for unit in ("KB", "MB", "GB", "TB"):
        if float(f"{count / UNITS[unit]:.3g}") < 1000 or unit == "TB":
            break
    return f"{figures(count / UNITS[unit])} {unit}" if float(f"{count:.3g}") >= 1000 else f"{count:.0f} B"
