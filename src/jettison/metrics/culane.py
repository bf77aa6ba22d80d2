"""The CULane F1: lanes are drawn 30 pixels wide, and matched by the IoU of their masks.

- Lanes are interpolated by a cubic spline, their points truncated to whole pixels, as in the code of CLRNet. The older
  program of SCNN has another spline; both count alike unless an IoU lies within about 0.01 of the threshold.
- Masks are drawn without OpenCV: a pixel belongs to a lane if its centre is within ``REACH`` of the line. OpenCV's
  lines differ from that at a few pixels of their edge; an IoU differs by less than 0.01, by 0.002 on average.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import splev, splprep
from scipy.optimize import linear_sum_assignment

HEIGHT, WIDTH = 590, 1640  # of CULane's images
LINE = 30  # pixels
REACH = 0.4  # pixels beyond half the line width; masks then have the areas of those of OpenCV
STEPS = 5  # points of the spline for every point of the lane
LIMIT = 1e5  # pixels; points beyond are moved to there
MEAN_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # of CLRNet's mF1


class Counts(NamedTuple):
    """Numbers of lanes: found, wrongly predicted, missed."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """The share of the predicted lanes that are right; 0 if no lane was found."""
        tp, fp, _ = self
        return tp / (tp + fp) if tp else 0.0

    @property
    def recall(self) -> float:
        """The share of the true lanes that were found; 0 if no lane was found."""
        tp, _, fn = self
        return tp / (tp + fn) if tp else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if no lane was found."""
        tp, fp, fn = self
        return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def culane_counts(
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    thresholds: Sequence[float] = (0.5,),
    shape: tuple[int, int] = (HEIGHT, WIDTH),
    width: int = LINE,
) -> dict[float, Counts]:
    """Count the lanes of one image that are found at each threshold.

    truth, predicted: lanes, arrays (points, 2) with x and y in pixels. Lanes of fewer than two points do not count.
    thresholds: a lane is found if the IoU is above.
    shape: height and width of the image. width: of the drawn lanes in pixels.
    Lanes are matched such that the sum of all IoUs is largest.
    Source: arXiv:1712.06080, section 5; code of CLRNet (arXiv:2203.10350).
    """
    true, guesses = ([lane for lane in lanes if len(lane) >= 2] for lanes in (truth, predicted))
    ious = lane_ious(guesses, true, shape, width)
    matched = ious[linear_sum_assignment(1 - ious)]
    hits = {limit: int((matched > limit).sum()) for limit in thresholds}
    return {limit: Counts(hit, len(guesses) - hit, len(true) - hit) for limit, hit in hits.items()}


def total_counts(images: Iterable[dict[float, Counts]]) -> dict[float, Counts]:
    """Add the counts of images. Raises ValueError if there are none."""
    total: dict[float, Counts] = {}
    for counts in images:
        for limit, row in counts.items():
            total[limit] = Counts(*map(sum, zip(total.get(limit, (0, 0, 0)), row, strict=True)))
    if not total:
        raise ValueError("there are no images to count")
    return total


def mean_f1(counts: dict[float, Counts]) -> float:
    """Average F1 over the thresholds of ``counts``; with ``MEAN_THRESHOLDS`` this is CLRNet's mF1."""
    return sum(row.f1 for row in counts.values()) / len(counts)


def lane_ious(
    lanes: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    shape: tuple[int, int] = (HEIGHT, WIDTH),
    width: int = LINE,
) -> np.ndarray:
    """Compute the IoU of the masks of every lane and every other, (lanes, others); 0 if both lie outside the image."""
    first, second = ([draw_lane(interpolate(lane), shape, width) for lane in group] for group in (lanes, others))
    ious = np.zeros((len(first), len(second)))
    for row, mask in enumerate(first):
        for column, other in enumerate(second):
            union = np.count_nonzero(mask | other)
            ious[row, column] = np.count_nonzero(mask & other) / union if union else 0.0
    return ious


def interpolate(lane: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Interpolate a lane by a spline through its points, cubic if it has at least four.

    lane: (points, 2). steps: points of the result for every point but the last.
    Returns (steps · (points − 1) + 1, 2). Points that repeat the one before are left out.
    """
    points = np.clip(np.asarray(lane, dtype=np.float64), -LIMIT, LIMIT)
    points = points[np.append(True, (np.diff(points, axis=0) != 0).any(1))]
    if len(points) < 2:
        return points
    spline, _ = splprep(points.T, s=0, k=min(3, len(points) - 1))
    return np.array(splev(np.linspace(0, 1, (len(points) - 1) * steps + 1), spline)).T


def draw_lane(points: np.ndarray, shape: tuple[int, int] = (HEIGHT, WIDTH), width: int = LINE) -> np.ndarray:
    """Draw a line through points, truncated to whole pixels, with round ends.

    points: (n, 2), x and y. Returns a mask of ``shape``, (height, width) bool.
    """
    height, columns = shape
    corners = np.trunc(np.clip(points, -LIMIT, LIMIT))
    start, end = (corners[:-1], corners[1:]) if len(corners) > 1 else (corners, corners)
    radius = width / 2 + REACH
    top, bottom = np.minimum(start, end)[:, 1] - radius, np.maximum(start, end)[:, 1] + radius
    top, bottom = (np.clip(np.floor(y), 0, height).astype(int) for y in (top, bottom + 1))
    rows = top[:, None] + np.arange((bottom - top).max(initial=0))  # (segments, rows of the tallest)
    left, right = _capsule_spans(start, end, radius, rows)
    first = np.clip(np.ceil(left), 0, columns)
    last = np.clip(np.floor(right) + 1, 0, columns)
    drawn = (last > first) & (rows < height)  # false for NaN
    steps = np.zeros((height, columns + 1), dtype=np.int16)  # +1 where a span begins, −1 where one has ended
    np.add.at(steps, (rows[drawn], first[drawn].astype(int)), 1)
    np.add.at(steps, (rows[drawn], last[drawn].astype(int)), -1)
    return steps[:, :-1].cumsum(1, dtype=np.int16) > 0


def _capsule_spans(start: np.ndarray, end: np.ndarray, radius: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rows cut the points within ``radius`` of segments: from left to right x, NaN where they do not.

    start, end: (segments, 2). y: (segments, rows). Returns two arrays (segments, rows).
    """
    bounds = []
    for centre in (start, end):  # the round ends
        gap = radius**2 - (y - centre[:, 1:]) ** 2
        half = np.sqrt(np.where(gap >= 0, gap, np.nan))
        bounds.append((centre[:, :1] - half, centre[:, :1] + half))
    along = end - start
    with np.errstate(divide="ignore", invalid="ignore"):  # of segments without length, and of horizontal edges
        normal = np.stack([-along[:, 1], along[:, 0]], 1) * (radius / np.hypot(*along.T))[:, None]
        corners = [start + normal, end + normal, end - normal, start - normal]  # of the rectangle between the ends
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True):
            share = (y - one[:, 1:]) / (other[:, 1:] - one[:, 1:])
            x = np.where((share >= 0) & (share <= 1), one[:, :1] + share * (other[:, :1] - one[:, :1]), np.nan)
            bounds.append((x, x))
    return np.fmin.reduce([low for low, _ in bounds]), np.fmax.reduce([high for _, high in bounds])
