"""Wanda: magnitude times the size of the input."""

import torch

from jettison.encodings.pattern import Pattern
from jettison.numerics.masks import column_norms, smallest
from jettison.recipe.registry import pruner
from jettison.statistics.stats import Stats


@pruner("wanda", paper="arXiv:2306.11695, section 3", needs=("hessian",))
def wanda(weight: torch.Tensor, pattern: Pattern, stats: Stats) -> torch.Tensor:
    """Set the weights of least |W| · ‖x‖ to zero, ‖x‖ being the norm of the weight's input over the calibration text.

    weight: (out, in) float32; returns the same with zeros. stats.hessian: (in, in), the mean of x xᵀ. Without a scope
    every output loses as many. What stays is left as it was.
    """
    return weight.masked_fill(smallest(weight.abs() * column_norms(stats.hessian), pattern, "row"), 0.0)
