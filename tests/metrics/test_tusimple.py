"""TuSimple accuracy against a brute-force reading of its definition, and its special rules."""

import math
import random

import pytest

from jettison.metrics.tusimple import TuSimpleScore, tusimple_image, tusimple_score

ROWS = list(range(240, 720, 10))


def slope(xs, ys):
    """Least squares by the sums of the textbook."""
    n, sx, sy = len(xs), sum(xs), sum(ys)
    sxy, syy = sum(x * y for x, y in zip(xs, ys, strict=True)), sum(y * y for y in ys)
    return (n * sxy - sx * sy) / (n * syy - sy * sy)


def brute_force(truth, predicted, rows):
    """Point by point, as doc/lane_detection/readme.md and evaluate/lane.py of the benchmark define it."""
    best, found_lanes = [], 0
    for lane in truth:
        points = [(x, y) for x, y in zip(lane, rows, strict=True) if x >= 0]
        angle = math.atan(slope(*zip(*points, strict=True))) if len(points) > 1 else 0
        limit, shares = 20 / math.cos(angle), [0.0]
        for guess in predicted:
            right = 0
            for x, other in zip(lane, guess, strict=True):
                if x < 0 and other < 0:
                    right += 1
                elif x < 0 or other < 0:
                    right += abs((x if x >= 0 else -100) - (other if other >= 0 else -100)) < limit
                else:
                    right += abs(x - other) < limit
            shares.append(right / len(rows))
        best.append(max(shares))
        found_lanes += max(shares) >= 0.85
    missed, total = len(truth) - found_lanes, sum(best)
    if len(truth) > 4:
        total -= min(best)
        missed = max(0, missed - 1)
    counted = max(1, min(4, len(truth)))
    wrong = (len(predicted) - found_lanes) / len(predicted) if predicted else 0
    return total / counted, wrong, missed / counted


def lane(rng):
    start, lean, first = rng.uniform(100, 1100), rng.uniform(-3, 3), rng.randrange(0, 20)
    xs = [start + lean * (y - 480) for y in ROWS]
    return [x if index >= first and 0 <= x < 1280 else -2 for index, x in enumerate(xs)]


@pytest.mark.parametrize("seed", range(60))
def test_it_equals_the_definition(seed):
    rng = random.Random(seed)
    truth = [lane(rng) for _ in range(rng.randrange(0, 6))]
    kept = [one for one in truth if rng.random() < 0.8]
    moved = [[x + rng.gauss(0, 12) if x >= 0 else x for x in one] for one in kept]
    predicted = moved + [lane(rng) for _ in range(rng.randrange(0, 3))]
    expected = brute_force(truth, predicted, ROWS)
    assert tusimple_image(truth, predicted, ROWS) == pytest.approx(expected, abs=1e-12)
    rng.shuffle(predicted)
    assert tusimple_image(truth, predicted, ROWS) == pytest.approx(expected, abs=1e-12)


def test_special_rules():
    rng = random.Random(1)
    truth = [lane(rng) for _ in range(4)]
    assert tusimple_image(truth, truth, ROWS) == (1, 0, 0)
    assert tusimple_image(truth, truth, ROWS, run_time=201) == (0, 0, 1)
    assert tusimple_image(truth[:1], truth, ROWS) == (0, 0, 1)  # more than two lanes too many
    assert tusimple_image(truth, [], ROWS) == (0, 0, 1)
    assert tusimple_image([], [], ROWS) == (0, 0, 0)
    five = [*truth, [640.0 + row for row in range(len(ROWS))]]
    assert tusimple_image(five, truth, ROWS) == (1, 0, 0)  # the fifth lane may be missed
    with pytest.raises(ValueError, match="3 values for 48 rows"):
        tusimple_image([[1, 2, 3]], [], ROWS)


def test_the_mean_and_f1():
    mean = tusimple_score([TuSimpleScore(1, 0.2, 0), TuSimpleScore(0.5, 0, 0.4)])
    assert mean == pytest.approx((0.75, 0.1, 0.2))
    assert mean.f1 == pytest.approx(2 * 0.9 * (0.9 / 1.1) / (0.9 + 0.9 / 1.1))
    assert TuSimpleScore(0, 1, 1).f1 == 0
    # ResNet-34 in the README of CLRNet: wrong 2.27 %, missed 2.08 %, F1 97.82 %
    assert 100 * TuSimpleScore(0.9687, 0.0227, 0.0208).f1 == pytest.approx(97.82, abs=0.01)
    with pytest.raises(ValueError, match="no images"):
        tusimple_score([])
