"""Distances between curves and between boxes, as the OpenLane-V2 devkit measures them.

Curves are arrays (points, dimensions). The Fréchet distance between sets of features is in ``frechet``.
"""

import numpy as np
from scipy.spatial.distance import cdist

RELAXED, LEAST = 5e-3, 0.5  # rule of the devkit: a distance counts less, the farther the curve is from the car


def frechet_distance(curve: np.ndarray, other: np.ndarray) -> float:
    """Compute the discrete Fréchet distance: the shortest leash for a walk along both curves, from point to point.

    curve: (n, d). other: (m, d). Both have at least one point; order matters.
    Raises ValueError for other shapes.
    Source: Eiter and Mannila, Computing discrete Fréchet distance, 1994.
    """
    _check(curve, other)
    rows = cdist(curve, other).tolist()
    leash = [-1.0] * len(rows[0])  # shortest leash to every point of the other curve, for the points so far
    for number, row in enumerate(rows):
        diagonal, before = leash[0], float("inf")  # of the row above; of this row
        for place, distance in enumerate(row):
            above = leash[place]
            way = min(above, diagonal, before) if number else before if place else -1.0
            leash[place] = before = max(way, distance)
            diagonal = above
    return before


def chamfer_distance(truth: np.ndarray, predicted: np.ndarray, drop_repeated: bool = True) -> float:
    """Compute the Chamfer distance: half the sum of both mean distances to the nearest point of the other curve.

    truth: (n, d). predicted: (m, d).
    drop_repeated: leave out the last point of a true curve that ends where it begins, as the devkit does since 2.0.
    Raises ValueError for other shapes.
    """
    _check(truth, predicted)
    if drop_repeated and len(truth) > 1 and (truth[0] == truth[-1]).all():
        truth = truth[:-1]
    distances = cdist(predicted, truth)  # (m, n)
    return float(distances.min(1).mean() + distances.min(0).mean()) / 2


def relaxation(truth: np.ndarray) -> float:
    """Return the factor that OpenLane-V2 multiplies distances to a true curve with: 1 at the car, 0.5 from 100 m on.

    truth: (n, d), metres, the car at the origin.
    """
    return max(LEAST, 1 - RELAXED * float(np.linalg.norm(truth, axis=1).min()))


def box_distance(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute 1 − intersection over union of two boxes, each [[x1, y1], [x2, y2]] with x1 < x2 and y1 < y2."""
    low, high = np.maximum(truth[0], predicted[0]), np.minimum(truth[1], predicted[1])
    inside = float(np.prod(np.maximum(high - low, 0)))
    return 1 - inside / float(np.prod(truth[1] - truth[0]) + np.prod(predicted[1] - predicted[0]) - inside)


def _check(curve: np.ndarray, other: np.ndarray) -> None:
    if curve.ndim != 2 or other.ndim != 2 or curve.shape[1] != other.shape[1] or not (len(curve) and len(other)):
        raise ValueError(f"two curves (points, dimensions) with points are needed: {curve.shape}, {other.shape}")
