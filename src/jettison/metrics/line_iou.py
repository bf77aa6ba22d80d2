"""Line IoU of lanes that are given as one x per row of the image, differentiable."""

import torch

SMALL = 1e-9


def line_iou(predicted: torch.Tensor, truth: torch.Tensor, width: float, radius: float = 15.0) -> torch.Tensor:
    """Compute the line IoU of every predicted lane with every true one.

    predicted: (lanes, rows), x in pixels. truth: (others, rows); outside 0 <= x < width there is no lane.
    width: of the image in pixels.
    radius: pixels by which a lane is extended to both sides.
    Returns (lanes, others), from −1 to 1: the sum of the signed overlaps of all rows where the true lane is, divided by
    the sum of the spans. 0 for a true lane without rows.
    Raises ValueError for shapes that do not fit.
    Source: CLRNet (arXiv:2203.10350), section 3.3.
    """
    if predicted.ndim != 2 or truth.ndim != 2 or predicted.shape[1] != truth.shape[1]:
        raise ValueError(
            f"lanes (lanes, rows) of the same rows are needed: {tuple(predicted.shape)}, {tuple(truth.shape)}"
        )
    return _iou(predicted[:, None], truth[None], width, radius)


def aligned_line_iou(predicted: torch.Tensor, truth: torch.Tensor, width: float, radius: float = 15.0) -> torch.Tensor:
    """Compute the line IoU of every predicted lane with the true lane of the same index.

    predicted, truth: (lanes, rows). Returns (lanes,). See ``line_iou``; 1 − its mean is CLRNet's loss.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(f"pairs of lanes (lanes, rows) are needed: {tuple(predicted.shape)}, {tuple(truth.shape)}")
    return _iou(predicted, truth, width, radius)


def _iou(predicted: torch.Tensor, truth: torch.Tensor, width: float, radius: float) -> torch.Tensor:
    valid = (truth >= 0) & (truth < width)
    apart = (predicted - truth).abs()  # of two intervals of length 2·radius
    overlap, span = 2 * radius - apart, 2 * radius + apart
    return torch.where(valid, overlap, 0).sum(-1) / (torch.where(valid, span, 0).sum(-1) + SMALL)
