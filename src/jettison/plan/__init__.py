"""From a device and a budget to a recipe, and what carrying it out will take."""

from jettison.plan.cost import Setting, predict, predict_drafted, predict_prefill
from jettison.plan.forecast import forecast
from jettison.plan.planner import Plan, make_plan, plan

__all__ = ["Plan", "Setting", "forecast", "make_plan", "plan", "predict", "predict_drafted", "predict_prefill"]
