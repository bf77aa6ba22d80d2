"""Samples feature maps at any places: the core of deformable attention, on the ``grid_sample`` of torch."""

from collections.abc import Sequence

import torch
from torch.nn import functional


def sample_map(features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Interpolate a map bilinearly. Outside the map there are zeros.

    features: (batch, channels, height, width).
    places: (batch, queries, points, 2), x and y as shares of the map's sides: 0 and 1 are its outer edges.
    Returns (batch, channels, queries, points).
    """
    return functional.grid_sample(features, 2 * places - 1, mode="bilinear", align_corners=False)


def deformable_sampling(maps: Sequence[torch.Tensor], places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum values at places of several maps, with weights.

    maps: of every level (batch, channels, height, width); the heads share the channels evenly.
    places: (batch, queries, heads, levels, points, 2), x and y as shares of the map's sides.
    weights: (batch, queries, heads, levels, points).
    Returns (batch, queries, channels).
    Source: arXiv:2010.04159, equation 3.
    """
    queries, heads, points = places.shape[1], places.shape[2], places.shape[4]
    total = None
    for level, values in enumerate(maps):
        own = values.reshape(-1, values.shape[1] // heads, values.shape[2], values.shape[3])  # (batch·heads, ...)
        where = places[:, :, :, level].transpose(1, 2).reshape(-1, queries, points, 2)
        share = weights[:, :, :, level].transpose(1, 2).reshape(-1, 1, queries, points)
        part = (sample_map(own, where) * share).sum(-1)  # (batch·heads, channels / heads, queries)
        total = part if total is None else total + part
    return total.reshape(-1, maps[0].shape[1], queries).transpose(1, 2)
