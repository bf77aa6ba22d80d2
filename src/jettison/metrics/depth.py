"""Depth metrics, by the protocols of SurroundDepth (several cameras) and of monodepth2 (KITTI).

Both mask the true depth, take the median scale of what is left if asked, clamp the prediction to the range, and average
the errors of images. SurroundDepth resizes depth maps and averages over images, then cameras; monodepth2 resizes
inverse depth. True depth is 0 where it is unknown.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

RANGES = {"ddad": (0.1, 200.0), "nuscenes": (0.1, 80.0), "kitti": (1e-3, 80.0)}  # metres
GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)  # top, bottom, left, right, as shares of the image


class DepthErrors(NamedTuple):
    """The errors of a depth map.

    abs_rel, sq_rel: means of |e|/d and e²/d (metres). rmse: metres. rmse_log: of natural logarithms.
    a1, a2, a3: shares of pixels with max(p/d, d/p) below 1.25, 1.25² and 1.25³.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    a1: float
    a2: float
    a3: float


def depth_errors(truth: np.ndarray, predicted: np.ndarray) -> DepthErrors:
    """Compute the errors of depths (pixels,) in metres, all positive. Raises ValueError if there are none."""
    if truth.shape != predicted.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(f"true and predicted depths (pixels,) are needed: {truth.shape}, {predicted.shape}")
    worst = np.maximum(truth / predicted, predicted / truth)
    off = truth - predicted
    return DepthErrors(
        float((np.abs(off) / truth).mean()),
        float((off**2 / truth).mean()),
        float(np.sqrt((off**2).mean())),
        float(np.sqrt(((np.log(truth) - np.log(predicted)) ** 2).mean())),
        *(float((worst < 1.25**power).mean()) for power in (1, 2, 3)),
    )


def score_depth_map(
    truth: np.ndarray,
    predicted: np.ndarray,
    least: float,
    most: float,
    median: bool = False,
    mask: np.ndarray | None = None,
) -> tuple[DepthErrors, float]:
    """Score a depth map of the size of the true one.

    truth, predicted: (height, width) metres.
    least, most: range of depth; the prediction is clamped to it.
    median: whether to multiply the prediction with the ratio of the medians of the true and the predicted depths.
    mask: (height, width), pixels that count; by default those with a true depth between least and most.
    Returns the errors, and the factor (1 without ``median``). Raises ValueError if no pixel counts, if the shapes
    differ, or if a predicted depth that counts is not a number above 0.
    """
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise ValueError(f"two maps (height, width) of one size are needed: {truth.shape}, {predicted.shape}")
    inside = (truth > least) & (truth < most) if mask is None else mask
    true, guess = truth[inside], predicted[inside]
    if not len(true):
        raise ValueError(f"no pixel has a true depth between {least:g} and {most:g} m")
    if not (np.isfinite(guess) & (guess > 0)).all():
        raise ValueError("a predicted depth is not a number above 0")
    factor = np.median(true) / np.median(guess) if median else guess.dtype.type(1)
    return depth_errors(true, np.clip(guess * factor, least, most)), float(factor)


def mean_errors(errors: Iterable[Sequence[float]]) -> DepthErrors:
    """Average errors. Raises ValueError if there are none."""
    rows = np.array(list(errors), dtype=np.float64)
    if not len(rows):
        raise ValueError("there are no errors to average")
    return DepthErrors(*map(float, rows.mean(0)))


def mean_over_cameras(errors: Iterable[tuple[str, DepthErrors]]) -> tuple[dict[str, DepthErrors], DepthErrors]:
    """Average the errors of images with their camera's name by camera, then over cameras. Returns both averages."""
    rows: dict[str, list[DepthErrors]] = {}
    for camera, row in errors:
        rows.setdefault(camera, []).append(row)
    cameras = {camera: mean_errors(row) for camera, row in rows.items()}
    return cameras, mean_errors(cameras.values())


def surround_depth(inverse: np.ndarray, shape: tuple[int, int], focal: float = 1.0, scale: float = 1.0) -> np.ndarray:
    """Return the depth map that SurroundDepth scores.

    inverse: (h, w), inverse depth of the network in 1/m. shape: (height, width) of the true depth.
    focal, scale: the depth is multiplied with focal / scale, both in pixels.
    """
    return resized(1 / inverse, shape) * (focal / scale)


def monodepth_errors(
    truth: np.ndarray,
    inverse: np.ndarray,
    scale: float = 1.0,
    median: bool = True,
    eigen: bool = True,
    bounds: tuple[float, float] = RANGES["kitti"],
) -> tuple[DepthErrors, float]:
    """Score an inverse depth map by the protocol of monodepth2.

    truth: (height, width) metres. inverse: (h, w), 1/m, resized to the size of ``truth``.
    scale: factor of the depth, 5.4 for models that were trained on stereo pairs.
    median: whether to use the ratio of medians, for models that were trained on one camera.
    eigen: whether only pixels inside Garg's crop and ``bounds`` count, as in the Eigen split; else all with a depth.
    Returns the errors and the ratio of medians. Raises ValueError as ``score_depth_map`` does.
    Source: arXiv:1806.01260, section 4; Garg et al., arXiv:1603.04992.
    """
    least, most = bounds
    height, width = truth.shape
    mask = truth > 0
    if eigen:
        top, bottom = (int(share * height) for share in GARG[:2])
        left, right = (int(share * width) for share in GARG[2:])
        crop = np.zeros_like(mask)
        crop[top:bottom, left:right] = True
        mask = (truth > least) & (truth < most) & crop
    return score_depth_map(truth, 1 / resized(inverse, truth.shape) * scale, least, most, median, mask)


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a map (h, w) bilinearly to (height, width), with the centres of pixels at halves and no smoothing."""
    if values.shape == tuple(shape):
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    return torch.nn.functional.interpolate(tensor, size=shape, mode="bilinear", align_corners=False)[0, 0].numpy()
