"""Sparsity masks: choose the weights to prune by their scores."""

import torch

from jettison.encodings.pattern import Pattern

COMPARED = 8  # largest group in which comparing all scores with one another is fastest


def smallest(scores: torch.Tensor, pattern: Pattern, scope: str = "layer") -> torch.Tensor:
    """Return the mask of the weights to prune: True at the smallest scores, as many as ``pattern`` asks for.

    scores: (out, in).
    scope: ``layer`` or ``row``, used if the pattern names none.
    Returns (out, in) bool.
    """
    if pattern.grouped:
        groups = scores.unflatten(1, (-1, pattern.of))  # (out, groups, of)
        few = pattern.of <= COMPARED
        return (_ranked if few else lowest)(groups, pattern.of - pattern.kept).flatten(1)
    if (pattern.scope or scope) == "row":
        return lowest(scores, pattern.zeros(scores.shape[1]))
    return lowest(scores.flatten(), pattern.zeros(scores.numel())).view_as(scores)


def _ranked(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Do the same as ``lowest`` for a short last dimension, by comparing all scores: four times as fast."""
    values = scores.unbind(-1)
    # The rank of a score: how many are smaller. Of equal ones the earlier counts as smaller, so ranks are unique.
    below = [
        sum(((other < value) if place > at else (other <= value)).to(torch.int8) for place, other in others)
        for at, value in enumerate(values)
        for others in [[(place, other) for place, other in enumerate(values) if place != at]]
    ]
    return torch.stack([rank < count for rank in below], -1)


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a bool mask of the shape of ``scores``: True at the ``count`` smallest along the last dimension."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    places = scores.topk(count, largest=False, sorted=False).indices
    return mask.scatter_(-1, places, True)


def column_norms(hessian: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of every input (in,). hessian: (in, in), the mean of x xᵀ."""
    return hessian.diagonal().clamp(min=0).sqrt()
