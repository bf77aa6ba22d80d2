"""Distances of curves and boxes against the OpenLane-V2 devkit, and what holds for all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_vectors import vectors

from jettison.metrics.distances import box_distance, chamfer_distance, frechet_distance, relaxation

CASES = vectors("openlanev2_distances")
coordinate = st.floats(-50, 50, allow_nan=False)
curves = st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=5).map(np.array)


@pytest.mark.parametrize("case", CASES["curves"], ids=range(len(CASES["curves"])))
def test_curves_equal_the_devkit(case):
    truth, predicted = np.array(case["gt"]), np.array(case["pred"])
    frechet, chamfer, factor = (
        frechet_distance(truth, predicted), chamfer_distance(truth, predicted), relaxation(truth),
    )  # fmt: skip
    actual = [frechet, chamfer, frechet * factor, chamfer * factor]
    expected = [case[name] for name in ("frechet", "chamfer", "frechet_relaxed", "chamfer_relaxed")]
    assert actual == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("case", CASES["boxes"], ids=range(len(CASES["boxes"])))
def test_boxes_equal_the_devkit(case):
    assert box_distance(np.array(case["gt"]), np.array(case["pred"])) == pytest.approx(case["iou_distance"], abs=1e-9)


def brute_force(curve, other):
    """Try every walk: at each step one of the curves, or both, go to the next point."""
    steps = [(1, 0), (0, 1), (1, 1)]

    def walk(i, j):
        here = float(np.linalg.norm(curve[i] - other[j]))
        ways = [walk(i + a, j + b) for a, b in steps if i + a < len(curve) and j + b < len(other)]
        return max(here, min(ways)) if ways else here

    return walk(0, 0)


@settings(max_examples=40, deadline=None)
@given(curves, curves)
def test_frechet_is_the_best_of_all_walks(curve, other):
    assert frechet_distance(curve, other) == pytest.approx(brute_force(curve, other))
    assert frechet_distance(curve, other) == pytest.approx(frechet_distance(other, curve))
    assert frechet_distance(curve[::-1], other[::-1]) == pytest.approx(frechet_distance(curve, other))


@settings(max_examples=40, deadline=None)
@given(curves, curves)
def test_chamfer_is_below_frechet_and_ignores_order(curve, other):
    assert chamfer_distance(curve, other, drop_repeated=False) <= frechet_distance(curve, other) + 1e-9
    shuffled = np.random.default_rng(0).permutation(other)
    assert chamfer_distance(curve, shuffled) == pytest.approx(chamfer_distance(curve, other))


def test_a_closed_curve_counts_its_last_point_once():
    loop, point = np.array([[0.0, 0], [4, 0], [0, 0]]), np.array([[0.0, 0]])
    assert chamfer_distance(loop, point) == 1.0 and chamfer_distance(loop, point, False) == pytest.approx(2 / 3)


def test_what_is_no_curve_is_refused():
    for one, other in itertools.permutations([np.zeros((2, 3)), np.zeros((0, 3)), np.zeros((2, 2)), np.zeros(3)], 2):
        with pytest.raises(ValueError, match="two curves"):
            frechet_distance(one, other)
