"""Text in, statistics out."""

from jettison.calibrate.stats import Stats, watch
from jettison.calibrate.text import BUNDLED, token_windows

__all__ = ["BUNDLED", "Stats", "token_windows", "watch"]
