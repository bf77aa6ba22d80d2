"""Wanda: prune by magnitude times the norm of the input."""

import torch

from jettison.encodings.pattern import Pattern
from jettison.numerics.masks import column_norms, smallest
from jettison.recipe.registry import pruner
from jettison.statistics.stats import Stats


@pruner("wanda", paper="arXiv:2306.11695, section 3", needs=("hessian",))
def wanda(weight: torch.Tensor, pattern: Pattern, stats: Stats) -> torch.Tensor:
    """Set the weights of least |W| · ‖x‖ to zero, where ‖x‖ is the norm of the weight's input on the calibration text.

    weight: (out, in) float32.
    pattern: without a scope, every output loses the same number of weights.
    stats.hessian: (in, in), the mean of x xᵀ.
    Returns (out, in) with zeros; the other weights are unchanged.
    """
    return weight.masked_fill(smallest(weight.abs() * column_norms(stats.hessian), pattern, "row"), 0.0)
