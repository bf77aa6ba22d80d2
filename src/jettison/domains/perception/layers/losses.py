"""Losses and costs of the perception models, without reduction: callers weigh, mask and sum."""

import torch
from torch.nn import functional

from jettison.metrics.line_iou import aligned_line_iou

ALPHA, GAMMA = 0.25, 2.0


def focal_loss(logits: torch.Tensor, truth: torch.Tensor, alpha: float = ALPHA, gamma: float = GAMMA) -> torch.Tensor:
    """Return the focal loss of every logit, in the shape of the logits.

    truth: 0 or 1, in the same shape. alpha: weight of ones; zeros have 1 − alpha. gamma: how much easy ones count less.
    Source: arXiv:1708.02002, equation 5.
    """
    truth = truth.to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    likely = torch.exp(-entropy)  # the probability of what is true
    return (alpha * truth + (1 - alpha) * (1 - truth)) * (1 - likely) ** gamma * entropy


def focal_cost(logits: torch.Tensor, alpha: float = ALPHA, gamma: float = GAMMA) -> torch.Tensor:
    """Return how much the focal loss changes if a logit's truth is 1 in place of 0, for matching: lower is better."""
    ones, zeros = torch.ones_like(logits), torch.zeros_like(logits)
    return focal_loss(logits, ones, alpha, gamma) - focal_loss(logits, zeros, alpha, gamma)


def masked_l1(guess: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference over the valid numbers of the last dimension; 0 if there are none.

    guess, truth, valid: (..., n), of shapes that broadcast. Returns (...).
    """
    apart = torch.where(valid, (guess - truth).abs(), 0)
    return apart.sum(-1) / valid.sum(-1).clamp(min=1)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Turn boxes (..., 4) of middle x, middle y, width and height into x1, y1, x2, y2."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1)


def generalized_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the generalized IoU of boxes, from −1 to 1.

    boxes, others: (..., 4), corners x1, y1, x2, y2, of shapes that broadcast: (n, 1, 4) and (1, m, 4) for all pairs.
    Returns (...). Source: arXiv:1902.09630, algorithm 1.
    """
    area = lambda low, high: (high - low).clamp(min=0).prod(-1)
    (low, high), (low_other, high_other) = boxes.split(2, -1), others.split(2, -1)
    overlap = area(torch.maximum(low, low_other), torch.minimum(high, high_other))
    union = area(low, high) + area(low_other, high_other) - overlap
    hull = area(torch.minimum(low, low_other), torch.maximum(high, high_other))
    small = torch.finfo(boxes.dtype).eps
    return overlap / union.clamp(min=small) - (hull - union) / hull.clamp(min=small)


def line_iou(guess: torch.Tensor, truth: torch.Tensor, width: float, radius: float) -> torch.Tensor:
    """Return the line IoU of pairs of lanes, from −1 to 1, see ``metrics.line_iou``.

    guess, truth: (..., rows), x of a lane in every row, of shapes that broadcast: (n, 1, rows) and (1, m, rows) for all
    pairs. Rows of ``truth`` outside 0 <= x < width are not compared. Returns (...).
    """
    guess, truth = torch.broadcast_tensors(guess, truth)
    rows = guess.shape[-1]
    return aligned_line_iou(guess.reshape(-1, rows), truth.reshape(-1, rows), width, radius).view(guess.shape[:-1])
