"""Depth of matches between two cameras whose places on the car are known, and what tells that a match is wrong."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jettison.domains.perception.scenes import Camera


class Limits(NamedTuple):
    """What a match must fulfil to be kept.

    most: metres of depth. angle: degrees between the two rays, at least. epipolar: pixels from the epipolar line of
    the partner, in both images, at most.
    Source: the settings of SurroundDepth (arXiv:2204.03636): 200 m, 0.01 degrees, 1 pixel on DDAD, 10 on nuScenes.
    """

    most: float = 200.0
    angle: float = 0.01
    epipolar: float = 1.0


@dataclass(frozen=True, eq=False)
class Triangulated:
    """Matches of two images as points of space.

    depths: (n, 2), metres along the axes of the first and the second camera; negative behind it, NaN if the rays are
        parallel.
    angles: (n,), degrees between the rays.
    epipolar: (n, 2), pixels from the epipolar line of the partner, in the first and the second image.
    """

    depths: np.ndarray
    angles: np.ndarray
    epipolar: np.ndarray

    def in_range(self, most: float = Limits().most) -> np.ndarray:
        """Return which points lie in front of both cameras, nearer than ``most`` metres, (n,) bool."""
        with np.errstate(invalid="ignore"):
            return ((self.depths > 0) & (self.depths < most)).all(1)

    def fits(self, limits: Limits) -> np.ndarray:
        """Return which matches fulfil all limits, (n,) bool."""
        near = (self.epipolar < limits.epipolar).all(1)
        return self.in_range(limits.most) & (self.angles > limits.angle) & near


def triangulate(pixels: np.ndarray, camera: Camera, others: np.ndarray, other: Camera) -> Triangulated:
    """Find the points at which the rays of matching pixels come closest.

    pixels, others: (n, 2), of the first and of the second camera.
    The points minimize the distance between the two rays, which need not meet.
    """
    between = np.linalg.inv(camera.camera_to_ego) @ other.camera_to_ego  # second camera to first
    turn, move = between[:3, :3], between[:3, 3]
    one, two = _rays(pixels, camera), _rays(others, other)  # (n, 3), 1 along the axis
    turned = two @ turn.T
    aa, bb, ab = (one * one).sum(1), (turned * turned).sum(1), (one * turned).sum(1)
    across = np.cross(one, turned)
    determinant = (across * across).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (bb * (one @ move) - ab * (turned @ move)) / determinant
        second = (ab * (one @ move) - aa * (turned @ move)) / determinant
    angles = np.degrees(np.arctan2(np.sqrt(determinant), ab))
    normal = np.cross(move, turned)  # of the plane of the second ray and the baseline, in the first camera
    other_normal = np.cross(move, one) @ turn
    epipolar = np.stack([_distance(pixels, normal, camera), _distance(others, other_normal, other)], 1)
    return Triangulated(np.stack([first, second], 1), angles, epipolar)


def _rays(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    points = np.column_stack([np.asarray(pixels, np.float64).reshape(-1, 2), np.ones(len(pixels))])
    return points @ np.linalg.inv(camera.intrinsics).T


def _distance(pixels: np.ndarray, normals: np.ndarray, camera: Camera) -> np.ndarray:
    """Distances (n,) of pixels from the lines in which planes with these normals cut the image."""
    lines = normals @ np.linalg.inv(camera.intrinsics)  # (n, 3)
    points = np.column_stack([np.asarray(pixels, np.float64).reshape(-1, 2), np.ones(len(pixels))])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs((points * lines).sum(1)) / np.hypot(lines[:, 0], lines[:, 1])
