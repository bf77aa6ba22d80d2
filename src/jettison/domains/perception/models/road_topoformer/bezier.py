"""Bezier curves in space, as lane detectors predict them, and the box around the car in which they lie."""

from functools import cache
from math import comb

import numpy as np
import torch

REACH = (60.0, 30.0, 6.0)  # metres ahead and behind, left and right, up and down; labels end at 51.2 and 25.6


@cache
def bernstein(controls: int, points: int) -> np.ndarray:
    """Return the matrix (points, controls) that maps control points to points at even parameters from 0 to 1."""
    t, degree = np.linspace(0, 1, points)[:, None], controls - 1
    powers = np.arange(controls)
    return np.array([comb(degree, k) for k in powers]) * t**powers * (1 - t) ** (degree - powers)


def curve_points(controls: torch.Tensor, points: int) -> torch.Tensor:
    """Return points of Bezier curves, (..., points, 3). controls: (..., controls, 3)."""
    return torch.as_tensor(bernstein(controls.shape[-2], points)).to(controls) @ controls


def fit_curve(points: np.ndarray, controls: int) -> np.ndarray:
    """Fit a Bezier curve to a line by least squares. Its ends are those of the line.

    points: (n, 3), at least 2. They are taken at even steps along the line, so that their density does not matter.
    Returns control points (controls, 3).
    """
    dense = even_points(points, 8 * controls)
    matrix, ends = bernstein(controls, len(dense)), dense[[0, -1]]
    if controls == 2:
        return ends
    rest = dense - matrix[:, [0, -1]] @ ends
    inner, *_ = np.linalg.lstsq(matrix[:, 1:-1], rest, rcond=None)
    return np.concatenate([ends[:1], inner, ends[1:]])


def even_points(points: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` points at even steps along a line. points: (n, 3). Returns (count, 3)."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    steps = np.linspace(0, along[-1], count)
    return np.stack([np.interp(steps, along, column) for column in points.T], 1)


def to_shares(points: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Turn metres of the ego frame (..., 3) into shares of the box around the car, float32.

    Returns x from left to right, y from ahead to behind, z from low to high: 0 to 1 inside the box.
    """
    ahead, left, up = (torch.as_tensor(points)[..., axis] / REACH[axis] for axis in range(3))
    return torch.stack([1 - left, 1 - ahead, 1 + up], -1).float() / 2


def to_metres(shares: torch.Tensor) -> torch.Tensor:
    """Turn shares of the box (..., 3) back into metres of the ego frame."""
    right, behind, up = (2 * shares - 1).unbind(-1)
    return torch.stack([-behind * REACH[0], -right * REACH[1], up * REACH[2]], -1)
