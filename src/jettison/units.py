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
