"""Text in, statistics out; and the best that a low rank can do by them."""

from jettison.calibrate.low_rank import best_correction
from jettison.calibrate.stats import Stats, watch
from jettison.calibrate.text import BUNDLED, token_windows

__all__ = ["BUNDLED", "Stats", "best_correction", "token_windows", "watch"]
