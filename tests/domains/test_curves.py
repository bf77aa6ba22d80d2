"""Learning curves: what the journal of a training says, over the steps of all stages."""

import re

from jettison.domains.perception.curves import POINTS, read_curves, training_svg


def step(stage, number, loss):
    return {"stage": stage, "step": number, "loss": loss}


def test_steps_count_on_over_the_stages_and_once_where_a_killed_run_did_them_again():
    entries = [
        {"model": "head"}, step("a", 0, 9.0), step("a", 1, 8.0), {"stage": "a", "score": 0.1}, step("a", 2, 7.0),
        step("a", 1, 8.5), {"stage": "a", "score": 0.2}, step("a", 2, 7.5),  # killed after step 2, continued after 0
        step("b", 0, 6.0), {"stage": "b", "score": 0.3}, step("b", 1, 5.0),
    ]  # fmt: skip
    losses, scores, stages = read_curves(entries)
    assert losses == [(0, 9.0), (1, 8.5), (2, 7.5), (3, 6.0), (4, 5.0)]
    assert scores == [(2, 0.2), (4, 0.3)] and stages == [("a", 0), ("b", 3)]


def test_the_picture_has_both_curves_and_the_stages():
    losses = [step("first", n, 100.0 / (n + 1)) for n in range(1000)] + [step("then", n, 0.1) for n in range(1000)]
    svg = training_svg([*losses, {"stage": "then", "score": 0.5}])
    loss, score = (line.split() for line in re.findall(r'<polyline points="([^"]*)"', svg))
    x, y = ([float(point.split(",")[axis]) for point in loss] for axis in (0, 1))
    assert len(loss) == POINTS and x == sorted(x) and y == sorted(y), "the loss falls: down the page"
    assert len(score) == 1 and "2,000 steps" in svg and ">first<" in svg and ">then<" in svg


def test_a_training_without_steps_has_an_empty_picture():
    assert read_curves([]) == ([], [], []) and "1 steps" in training_svg([])
