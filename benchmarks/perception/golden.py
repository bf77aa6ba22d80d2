"""The largest differences of the perception metrics from the official programs, over tests/golden/perception."""

import json
from typing import Any

import numpy as np

from benchmarks.witness import ROOT
from jettison.metrics.culane import culane_counts, total_counts
from jettison.metrics.depth import mean_over_cameras, score_depth_map, surround_depth
from jettison.metrics.openlanev2 import RoadGraph, openlanev2_score

FOLDER = ROOT / "tests" / "golden" / "perception"
LIMITS = ("0.5", "0.75")  # IoU
SCORES = ("DET_l", "DET_t", "TOP_ll", "TOP_lt", "OLS")


def metric_errors() -> dict[str, float]:
    """Return the three claims about metrics."""
    return {
        "culane_f1_max_abs_error": _culane(),
        "ols_max_abs_error": _openlanev2(),
        "depth_metric_max_rel_error": _depth(),
    }


def _vectors(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def _culane() -> float:
    lanes = lambda lists: [np.array(lane, dtype=float).reshape(-1, 2) for lane in lists]
    limits, errors = tuple(map(float, LIMITS)), []
    for group in _vectors("culane_f1")["sets"].values():
        counts = [culane_counts(lanes(one["gt"]), lanes(one["pred"]), limits) for one in group["images"]]
        total = total_counts(counts)
        errors += [abs(total[float(limit)].f1 - group["expected"][limit]["F1"]) for limit in LIMITS]
    return max(errors)


def _openlanev2() -> float:
    """All five scores of rules v1.1 and v2.1."""
    cases, errors = _vectors("openlanev2_ols"), []
    truth = [_graph(frame) for frame in cases["ground_truth"].values()]
    for name, frames in cases["prediction_sets"].items():
        for rule in ("v1.1", "v2.1"):
            score = openlanev2_score(truth, [_graph(frame) for frame in frames.values()], rule)
            errors += [abs(getattr(score, one.lower()) - cases["expected"][name][one]) for one in SCORES]
    return max(errors)


def _graph(frame: dict[str, Any]) -> RoadGraph:
    lanes, elements = frame["lane_centerline"], frame["traffic_element"]
    confidences = (np.array([one.get("confidence", 1.0) for one in part], dtype=float) for part in (lanes, elements))
    return RoadGraph(
        [np.array(lane["points"], dtype=float) for lane in lanes],
        np.array([element["points"] for element in elements], dtype=float).reshape(-1, 2, 2),
        np.array([element["attribute"] for element in elements], dtype=int),
        np.array(frame["topology_lclc"], dtype=float).reshape(len(lanes), len(lanes)),
        np.array(frame["topology_lcte"], dtype=float).reshape(len(lanes), len(elements)),
        *confidences,
    )


def _depth() -> float:
    """The means over cameras, in float64."""
    errors = []
    with np.load(FOLDER / "depth_maps.npz") as maps:
        for case in _vectors("depth_metrics")["surrounddepth"]:
            for kind in ("scale_aware", "median_scaled"):
                rows = []
                for place, camera in enumerate(case["camera_ids"]):
                    truth = maps[f"sd_{case['name']}_gt"][place].astype(np.float64)
                    inverse = maps[f"sd_{case['name']}_pred_disp"][place].astype(np.float64)
                    focal = (case["fx"][place], case["focal_scale"]) if case["fx"] else ()
                    depth = surround_depth(inverse, truth.shape, *focal)
                    median = kind == "median_scaled"
                    rows.append(
                        (camera, score_depth_map(truth, depth, case["min_depth"], case["max_depth"], median)[0])
                    )
                ours = np.array(mean_over_cameras(rows)[1])
                theirs = np.array(case["expected_float64"]["mean_over_cameras"][kind])
                errors.append(float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-12))))
    return max(errors)
