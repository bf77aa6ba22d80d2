"""XRBench: several perception models run at once on a headset, each under deadlines.

This package can simulate a scenario, run it live, and tune the models for it. ``jettison.xr`` itself exports only what
needs nothing but costs; import ``sources``, ``live``, ``sweep``, ``tune``, ``trace`` and ``results`` as modules.

Source: XRBench (arXiv:2211.08675) and its official program, whose published scores ``compat="v0.1"`` reproduces.
"""

from jettison.domains.perception.xr.catalog import find_model, model_names
from jettison.xr.costs import Cost, Costs, table_costs
from jettison.xr.definitions import Scenario, accelerator_names, find_accelerator, find_scenario, scenario_names
from jettison.xr.dispatch import SCHEDULERS
from jettison.xr.frames import Frame, Timeline
from jettison.xr.scores import ScenarioScore, benchmark_score, expected_score, inference_score, score, summary
from jettison.xr.simulator import simulate

__all__ = [
    "SCHEDULERS",
    "Cost",
    "Costs",
    "Frame",
    "Scenario",
    "ScenarioScore",
    "Timeline",
    "accelerator_names",
    "benchmark_score",
    "expected_score",
    "find_accelerator",
    "find_model",
    "find_scenario",
    "inference_score",
    "model_names",
    "scenario_names",
    "score",
    "simulate",
    "summary",
    "table_costs",
]
