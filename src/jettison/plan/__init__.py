"""From a device and a budget to a recipe."""

from jettison.plan.forecast import forecast
from jettison.plan.presets import Choice, plan, predict, rank_presets

__all__ = ["Choice", "forecast", "plan", "predict", "rank_presets"]
