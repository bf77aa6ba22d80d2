"""The CULane F1 against CLRNet's code and the C++ evaluator, and its masks against a plain reading of what they are."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_vectors import vectors

from jettison.metrics.culane import (
    MEAN_THRESHOLDS,
    REACH,
    Counts,
    culane_counts,
    draw_lane,
    interpolate,
    lane_ious,
    mean_f1,
    total_counts,
)

CASES = vectors("culane_f1")
SETS = CASES["sets"]


def lanes(lists):
    return [np.array(lane, dtype=float).reshape(-1, 2) for lane in lists]


@pytest.fixture(scope="module")
def counted():
    """Name of the set -> counts of every image."""
    limits = (*MEAN_THRESHOLDS, 0.75)
    count = lambda image: culane_counts(lanes(image["gt"]), lanes(image["pred"]), limits)
    return {name: [count(image) for image in group["images"]] for name, group in SETS.items()}


@pytest.mark.parametrize("name", SETS)
def test_counts_and_f1_equal_the_official_programs(counted, name):
    group, total = SETS[name], total_counts(counted[name])
    for limit in ("0.5", "0.75"):
        for counts, image in zip(counted[name], group["images"], strict=True):
            expected = image["expected"][limit]
            assert counts[float(limit)] == (expected["TP"], expected["FP"], expected["FN"]), image["name"]
        expected, row = group["expected"][limit], total[float(limit)]
        assert (row.precision, row.recall, row.f1) == pytest.approx(
            tuple(expected[part] for part in ("precision", "recall", "F1")), abs=1e-9
        )
    mean = mean_f1({limit: total[limit] for limit in MEAN_THRESHOLDS})
    assert mean == pytest.approx(group["expected_mF1_0.50_0.95_clrnet"]["F1"], abs=0.02)


def test_a_lane_at_the_threshold_is_not_found():
    lane, other = (np.array([[x, 100.0], [x, 500.0]]) for x in (800.0, 808.0))
    iou = float(lane_ious([lane], [other])[0, 0])
    below = float(np.nextafter(iou, 0))
    counts = culane_counts([lane], [other], (below, iou))
    assert counts == {below: Counts(1, 0, 0), iou: Counts(0, 1, 1)}


def test_all_sets_together(counted):
    total = total_counts(counts for group in counted.values() for counts in group)
    for limit, expected in CASES["expected_all_pooled"].items():
        assert total[float(limit)] == (expected["TP"], expected["FP"], expected["FN"])
        assert total[float(limit)].f1 == pytest.approx(expected["F1"], abs=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_ious_are_near_the_official_ones(name):
    for image in SETS[name]["images"]:
        for program in ("clrnet", "scnn_cpp"):
            expected = image[f"iou_discrete_{program}"]
            if expected:
                actual = lane_ious(lanes(image["pred"]), lanes(image["gt"]))
                assert np.abs(actual - np.array(expected)).max() < 0.01, image["name"]


pixel = st.floats(-60, 160, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(pixel, pixel), min_size=1, max_size=4).map(np.array), st.sampled_from([2, 15, 30]))
def test_a_mask_holds_the_pixels_near_the_line(points, width):
    mask = draw_lane(points, (70, 90), width)
    y, x = np.mgrid[:70, :90]
    centres, corners = np.stack([x, y], -1).astype(float), np.trunc(points)
    nearest = np.full((70, 90), np.inf)
    for start, end in pairwise(corners) if len(corners) > 1 else [(corners[0], corners[0])]:
        along = end - start
        share = np.clip((centres - start) @ along / max(along @ along, 1e-9), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(centres - start - share[..., None] * along, axis=-1))
    assert (mask == (nearest <= width / 2 + REACH)).all()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.permutations(range(3)))
def test_the_order_of_lanes_does_not_matter(first, second):
    image = SETS["graded"]["images"][1]
    truth, guesses = lanes(image["gt"]), lanes(image["pred"])
    orders = [[place for place in order if place < len(group)] for order, group in ((first, truth), (second, guesses))]
    shuffled = culane_counts([truth[place] for place in orders[0]], [guesses[place] for place in orders[1]])
    assert shuffled == culane_counts(truth, [guesses[place] for place in sorted(orders[1])])


def test_odd_lanes():
    """Lanes outside the image, of one point, of equal points, and with coordinates of any size."""
    inside = np.array([[100.0, 500], [200, 300]])
    outside = np.array([[-900.0, 500], [-800, 300]])
    assert culane_counts([inside], [outside])[0.5] == (0, 1, 1)
    assert culane_counts([outside], [outside])[0.5] == (0, 1, 1)  # nothing is drawn, so nothing can match
    assert culane_counts([inside], [inside[:1]])[0.5] == (0, 0, 1)
    assert culane_counts([inside], [inside[[0, 0, 0]]])[0.5] == (0, 1, 1)
    assert culane_counts([inside], [inside * 1e9])[0.5] == (0, 1, 1)
    assert culane_counts([inside], [inside[[0, 0, 1, 1]]])[0.5] == (1, 0, 0)
    assert culane_counts([], [])[0.5] == (0, 0, 0)
    with pytest.raises(ValueError, match="no images"):
        total_counts([])


def test_scores_of_nothing_found_are_zero():
    assert Counts(0, 3, 0).f1 == Counts(0, 0, 2).recall == Counts(0, 0, 0).precision == 0.0


def test_interpolation_goes_through_the_points():
    lane = np.array([[10.0, 500], [40, 450], [60, 400], [70, 350], [75, 300]])
    spline = interpolate(lane)
    assert len(spline) == 21 and np.abs(spline[[0, -1]] - lane[[0, -1]]).max() < 1e-9
    fine = interpolate(lane, steps=500)
    assert max(np.abs(fine - point).sum(1).min() for point in lane) < 0.1
    line = np.array([[0.0, 0], [10, 20]])
    assert interpolate(line)[:, 1] == pytest.approx(2 * interpolate(line)[:, 0])
