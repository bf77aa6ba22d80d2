"""Magnitude pruning: set the smallest weights to zero."""

import torch

from jettison.encodings.pattern import Pattern
from jettison.numerics.masks import smallest
from jettison.recipe.registry import pruner


@pruner("magnitude", paper="arXiv:1506.02626, section 3")
def magnitude(weight: torch.Tensor, pattern: Pattern, stats: object = None) -> torch.Tensor:
    """Set the weights of least magnitude to zero. Needs no data.

    weight: (out, in) float32.
    pattern: without a scope, the smallest weights of the whole layer are pruned.
    Returns (out, in) with zeros; the other weights are unchanged.
    """
    return weight.masked_fill(smallest(weight.abs(), pattern), 0.0)
