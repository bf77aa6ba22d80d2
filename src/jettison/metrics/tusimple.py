"""The TuSimple lane benchmark: accuracy, and shares of wrong and of missed lanes.

A lane is one x per row of a fixed list of rows; a negative x means that the lane is not there.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PIXELS = 20.0  # a point of a vertical lane is right within this distance
RIGHT = 0.85  # share of right points from which a lane is found
SLOWEST = 200.0  # milliseconds
EXTRA = 2  # lanes that may be predicted beyond the true ones
COUNTED = 4  # lanes of an image that count at most; a fifth one is there while the car changes its lane
ABSENT = -100.0  # x of rows without the lane, as in the official code


class TuSimpleScore(NamedTuple):
    """The score of an image, or the mean over images.

    accuracy: share of right points. wrong: share of the predicted lanes that are wrong (the benchmark's FP).
    missed: share of the true lanes that are missed (FN).
    """

    accuracy: float
    wrong: float
    missed: float

    @property
    def f1(self) -> float:
        """The F1 of lane papers: precision p = 1 − wrong, recall p / (p + missed), as the code of CLRNet has it."""
        precision = 1 - self.wrong
        recall = precision / (precision + self.missed) if precision + self.missed > 0 else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def tusimple_image(
    truth: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[float]],
    rows: Sequence[float],
    run_time: float = 0.0,
) -> TuSimpleScore:
    """Score the lanes of one image.

    truth, predicted: lanes, each with one x per row; negative where the lane is not.
    rows: y of the rows in pixels.
    run_time: milliseconds; above 200 nothing counts.
    A point is right if its x is within 20 px / cos(angle) of the true one, or if both lanes are absent there; the angle
    is that of the line fitted to the true lane. A true lane gets the best share of any prediction.
    Raises ValueError for a lane with another number of rows.
    Source: tusimple-benchmark, evaluate/lane.py.
    """
    for lane in (*truth, *predicted):
        if len(lane) != len(rows):
            raise ValueError(f"a lane has {len(lane)} values for {len(rows)} rows")
    if run_time > SLOWEST or len(predicted) > len(truth) + EXTRA:
        return TuSimpleScore(0.0, 0.0, 1.0)
    guesses = np.array(predicted, dtype=np.float64).reshape(len(predicted), len(rows))
    guesses = np.where(guesses >= 0, guesses, ABSENT)
    shares = [
        _best_share(np.array(lane, dtype=np.float64), guesses, np.array(rows, dtype=np.float64)) for lane in truth
    ]
    matched = sum(share >= RIGHT for share in shares)
    missed, right = len(shares) - matched, sum(shares)
    if len(truth) > COUNTED:  # the worst lane is left out
        missed, right = max(0, missed - 1), right - min(shares)
    counted = max(1, min(COUNTED, len(truth)))
    wrong = (len(predicted) - matched) / len(predicted) if len(predicted) else 0.0
    return TuSimpleScore(right / counted, wrong, missed / counted)


def tusimple_score(images: Iterable[TuSimpleScore]) -> TuSimpleScore:
    """Average the scores of images. Raises ValueError if there are none."""
    scores = list(images)
    if not scores:
        raise ValueError("there are no images to average")
    return TuSimpleScore(*(sum(column) / len(scores) for column in zip(*scores, strict=True)))


def _best_share(lane: np.ndarray, guesses: np.ndarray, rows: np.ndarray) -> float:
    if not len(guesses) or not len(rows):
        return 0.0
    there = lane >= 0
    slope = np.polyfit(rows[there], lane[there], 1)[0] if len(set(rows[there])) > 1 else 0.0
    limit = PIXELS / np.cos(np.arctan(slope))
    apart = np.abs(guesses - np.where(there, lane, ABSENT))  # (predicted, rows)
    return float((apart < limit).mean(1).max())
