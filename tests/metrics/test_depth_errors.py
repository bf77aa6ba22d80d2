"""Depth metrics against SurroundDepth and monodepth2, and what holds for all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_vectors import depth_maps, vectors

from jettison.metrics.depth import (
    DepthErrors,
    depth_errors,
    mean_errors,
    mean_over_cameras,
    monodepth_errors,
    score_depth_map,
    surround_depth,
)

CASES = vectors("depth_metrics")
PRECISIONS = {"expected_float64": (np.float64, 1e-9, 1e-8), "expected_float32_pipeline": (np.float32, 1e-4, 1e-4)}
LOOSE = [name in ("sq_rel", "rmse") for name in DepthErrors._fields]


def check(actual, expected, precision):
    _, tolerance, loose = PRECISIONS[precision]
    limits = np.where(LOOSE, loose, tolerance)
    assert (np.abs(np.array(actual) - np.array(expected)) <= limits).all(), (actual, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES["surrounddepth"], ids=lambda case: case["name"])
@pytest.mark.parametrize("kind", ["scale_aware", "median_scaled"])
def test_it_equals_surrounddepth(case, kind, precision):
    maps, expected, rows, dtype = depth_maps(), case[precision], [], PRECISIONS[precision][0]
    for index, camera in enumerate(case["camera_ids"]):
        truth = maps[f"sd_{case['name']}_gt"][index].astype(dtype)
        inverse = maps[f"sd_{case['name']}_pred_disp"][index].astype(dtype)
        focal = (case["fx"][index], case["focal_scale"]) if case["fx"] else ()
        depth = surround_depth(inverse, truth.shape, *focal)
        errors, ratio = score_depth_map(truth, depth, case["min_depth"], case["max_depth"], kind == "median_scaled")
        check(errors, expected["per_image"][kind][index], precision)
        if kind == "median_scaled":
            assert ratio == pytest.approx(expected["median_ratios"][index], abs=PRECISIONS[precision][1])
        rows.append((camera, errors))
    cameras, mean = mean_over_cameras(rows)
    for camera, row in cameras.items():
        check(row, expected["per_camera"][kind][camera], precision)
    check(mean, expected["mean_over_cameras"][kind], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES["monodepth2"], ids=lambda case: case["name"])
def test_it_equals_monodepth2(case, precision):
    maps, expected, rows, dtype = depth_maps(), case[precision], [], PRECISIONS[precision][0]
    names = [f"md_{case['name']}_{part}" for part in ("gt", "pred_disp")]
    for index, (truth, inverse) in enumerate(zip(*(maps[name] for name in names), strict=True)):
        errors, _ = monodepth_errors(
            truth.astype(dtype), inverse.astype(dtype), case["pred_depth_scale_factor"], case["median_scaling"],
            case["eval_split"] == "eigen", (case["min_depth"], case["max_depth"]),
        )  # fmt: skip
        if "per_image" in expected:
            check(errors, expected["per_image"][index], precision)
        rows.append(errors)
    check(mean_errors(rows), expected["mean"], precision)


depths = st.lists(st.floats(0.5, 70), min_size=1, max_size=12).map(np.array)


@settings(max_examples=50, deadline=None)
@given(depths, st.floats(0.2, 5), st.randoms(use_true_random=False))
def test_scale_and_order(truth, factor, random):
    assert depth_errors(truth, truth) == (0, 0, 0, 0, 1, 1, 1)
    order = list(range(len(truth)))
    random.shuffle(order)
    guess = truth[::-1] * 1.1
    assert depth_errors(truth[order], guess[order]) == pytest.approx(depth_errors(truth, guess))
    scaled, ratio = score_depth_map(truth[None], truth[None] * factor, 0.1, 80, median=True)
    assert ratio == pytest.approx(1 / factor) and scaled == pytest.approx((0, 0, 0, 0, 1, 1, 1), abs=1e-6)
    assert depth_errors(truth, truth * factor).abs_rel == pytest.approx(abs(factor - 1))


def test_bad_input():
    depth = np.full((2, 3), 5.0)
    with pytest.raises(ValueError, match="no pixel has a true depth"):
        score_depth_map(np.zeros((2, 3)), depth, 0.1, 80)
    with pytest.raises(ValueError, match="one size"):
        score_depth_map(depth, depth[:, :2], 0.1, 80)
    for wrong in (np.nan, np.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="not a number above 0"):
            score_depth_map(depth, np.full((2, 3), wrong), 0.1, 80)
    with pytest.raises(ValueError, match="no errors"):
        mean_over_cameras([])
