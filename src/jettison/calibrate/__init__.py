"""Text in, statistics out; and what methods make of statistics: ranges, columns that make up for others, low ranks."""

from jettison.calibrate.columns import dampings, inverse_factor, never_active, spread_errors
from jettison.calibrate.low_rank import best_correction
from jettison.calibrate.ranges import find_range
from jettison.calibrate.stats import Stats, watch
from jettison.calibrate.text import BUNDLED, encode, text_digest, token_windows

__all__ = [
    "BUNDLED",
    "Stats",
    "best_correction",
    "dampings",
    "encode",
    "find_range",
    "inverse_factor",
    "never_active",
    "spread_errors",
    "text_digest",
    "token_windows",
    "watch",
]
