"""The OpenLane-V2 score against the official devkit, and its invariances."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perception_vectors import vectors

from jettison.metrics.openlanev2 import RoadGraph, openlanev2_score

CASES = vectors("openlanev2_ols")
SETS = list(CASES["prediction_sets"])
SCORES = ("DET_l", "DET_t", "TOP_ll", "TOP_lt", "OLS")


def graph(frame):
    lanes, elements = frame["lane_centerline"], frame["traffic_element"]
    confidences = [np.array([one.get("confidence", 1.0) for one in part], dtype=float) for part in (lanes, elements)]
    return RoadGraph(
        [np.array(lane["points"], dtype=float) for lane in lanes],
        np.array([element["points"] for element in elements], dtype=float).reshape(-1, 2, 2),
        np.array([element["attribute"] for element in elements], dtype=int),
        np.array(frame["topology_lclc"], dtype=float).reshape(len(lanes), len(lanes)),
        np.array(frame["topology_lcte"], dtype=float).reshape(len(lanes), len(elements)),
        *confidences,
    )


TRUTH = [graph(frame) for frame in CASES["ground_truth"].values()]


def predictions(name):
    return [graph(frame) for frame in CASES["prediction_sets"][name].values()]


def values(score):
    return [getattr(score, name.lower()) for name in SCORES]


@pytest.mark.parametrize("rule", ["v1.1", "v2.1"])
@pytest.mark.parametrize("name", SETS)
def test_it_equals_the_devkit(name, rule):
    score, expected = openlanev2_score(TRUTH, predictions(name), rule), CASES["expected"][name]
    assert values(score) == pytest.approx([expected[part] for part in SCORES], abs=1e-5)
    assert list(score.lane_precisions) == pytest.approx(expected["DET_l_per_threshold"], abs=1e-5)
    assert list(score.element_precisions) == pytest.approx(expected["DET_t_per_attribute"], abs=1e-5)
    plain = lambda match: [None if one < 0 else int(one) for one in match]
    for index, frame in enumerate(expected["match_pred_to_gt"].values()):
        assert [plain(match) for match in score.lane_matches[index]] == [
            frame[limit] for limit in ("1.0", "2.0", "3.0")
        ]
        assert plain(score.element_matches[index]) == frame["te_0.75"]


@pytest.mark.parametrize("name", SETS)
def test_it_is_near_the_rule_of_2023(name):
    expected = CASES["expected_rule_v1.0"][name]
    score = openlanev2_score(TRUTH, predictions(name), "v1.0")
    assert values(score) == pytest.approx([expected[part] for part in SCORES], abs=0.02)


def test_the_truth_has_score_one_and_shuffled_edges_cost_topology_alone():
    perfect = openlanev2_score(TRUTH, predictions("perfect"))
    shuffled = openlanev2_score(TRUTH, predictions("shuffled_adjacency"))
    assert values(perfect) == [1.0] * 5
    assert (shuffled.det_l, shuffled.det_t) == (1.0, 1.0) and shuffled.top_ll < 0.5 and shuffled.top_lt < 0.5


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_predictions_and_of_frames_does_not_matter(random):
    """With confidences that differ; the devkit itself orders equal ones as they come."""
    guesses = [spread(guess) for guess in predictions("everything")]
    order = list(range(len(TRUTH)))
    random.shuffle(order)
    shuffled = openlanev2_score(
        [TRUTH[place] for place in order], [permuted(guesses[place], random) for place in order]
    )
    assert values(shuffled) == pytest.approx(values(openlanev2_score(TRUTH, guesses)), abs=1e-6)


def spread(guess):
    """Make the confidences of a frame, and of its edges, different from each other."""
    rng = np.random.default_rng(len(guess.lanes))
    off = lambda values: values + rng.uniform(-1e-4, 1e-4, values.shape)
    names = ("lane_confidences", "element_confidences", "lane_lane", "lane_element")
    return replace(guess, **{name: off(getattr(guess, name)) for name in names})


def permuted(guess, random):
    lanes, elements = list(range(len(guess.lanes))), list(range(len(guess.boxes)))
    random.shuffle(lanes)
    random.shuffle(elements)
    return RoadGraph(
        [guess.lanes[lane] for lane in lanes], guess.boxes[elements], guess.attributes[elements],
        guess.lane_lane[np.ix_(lanes, lanes)], guess.lane_element[np.ix_(lanes, elements)],
        guess.lane_confidences[lanes], guess.element_confidences[elements],
    )  # fmt: skip


def test_a_higher_rank_of_a_true_lane_never_costs():
    """Of a right and a wrong lane, the score is higher if the right one is more confident."""
    line = np.array([[0.0, 0, 0], [10, 0, 0]])
    build = lambda first, second: RoadGraph(
        [line, line + np.array([0, 5, 0])], np.zeros((0, 2, 2)), np.zeros(0, int), np.zeros((2, 2)), np.zeros((2, 0)),
        np.array([first, second]),
    )  # fmt: skip
    truth = [RoadGraph([line], np.zeros((0, 2, 2)), np.zeros(0, int), np.zeros((1, 1)), np.zeros((1, 0)))]
    good, bad = (openlanev2_score(truth, [build(*pair)]).det_l for pair in ((0.9, 0.1), (0.1, 0.9)))
    assert (good, bad) == (1.0, pytest.approx(0.5))


def test_empty_frames_and_bad_input():
    empty = RoadGraph([], np.zeros((0, 2, 2)), np.zeros(0, int), np.zeros((0, 0)), np.zeros((0, 0)))
    score = openlanev2_score([empty], [empty])
    assert (score.det_l, score.det_t, score.top_ll, score.top_lt) == (1.0, 1.0, 0.0, 0.0)  # as in the devkit
    with pytest.raises(ValueError, match="1 true and 2 predicted"):
        openlanev2_score([empty], [empty, empty])
    with pytest.raises(ValueError, match="valid: v1.0"):
        openlanev2_score([empty], [empty], "v3")
    with pytest.raises(ValueError, match="needs a confidence"):
        openlanev2_score(TRUTH[:1], [replace(TRUTH[0], lane_confidences=np.zeros(0))])
    with pytest.raises(ValueError, match="lane_lane has shape"):
        replace(TRUTH[0], lane_lane=np.zeros((1, 1)))
