"""Sizes and rates as people write them."""

import re

from jettison.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def parse_bytes(text: str | float) -> float:
    """ "3GB" -> 3e9. Raises UsageError that lists the units."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([KMGT]?B?)\s*", str(text), re.IGNORECASE)
    unit = found[2].upper() if found else ""
    if not found or unit not in UNITS or float(found[1]) <= 0:
        raise UsageError(f"memory = {text!r}: a positive number with B, KB, MB, GB or TB is needed, such as 3GB")
    return float(found[1]) * UNITS[unit]


def format_rate(rate: float) -> str:
    """Tokens per second: four digits, thousands set apart."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def format_bytes(count: float) -> str:
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.3g} {unit}"
    return f"{count:.0f} B"
