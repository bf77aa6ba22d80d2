"""Losses on images that were carried to another camera or moment (arXiv:1806.01260, arXiv:2204.03636)."""

import torch
from torch.nn import functional

STRUCTURE = 0.85  # weight of SSIM; the rest is L1
DARK, LIGHT = 0.01**2, 0.03**2  # constants of SSIM for values from 0 to 1


def dissimilarity(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the photometric error 0.85 · (1 − SSIM) / 2 + 0.15 · L1 of each pixel, (n, height, width).

    made, true: (n, 3, height, width) from 0 to 1. SSIM is over windows of 3 x 3 pixels.
    """
    mean = lambda image: functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="reflect"), 3, 1)
    one, two = mean(made), mean(true)
    spread_one, spread_two = mean(made**2) - one**2, mean(true**2) - two**2
    shared = mean(made * true) - one * two
    above = (2 * one * two + DARK) * (2 * shared + LIGHT)
    below = (one**2 + two**2 + DARK) * (spread_one + spread_two + LIGHT)
    structure = ((1 - above / below) / 2).clamp(0, 1)
    return (STRUCTURE * structure + (1 - STRUCTURE) * (made - true).abs()).mean(1)


def temporal_loss(
    made: torch.Tensor, unmoved: torch.Tensor, inside: torch.Tensor, usable: torch.Tensor
) -> torch.Tensor:
    """Return the mean over pixels of the least error of some carried images, where motion explains the image better.

    made: (moments, n, height, width), errors of the carried images. unmoved: the same of the images as they are.
    inside: (moments, n, height, width) bool, where a carried image was seen.
    usable: (n, height, width) bool, pixels that show no part of the own car.
    Pixels that motion explains no better are left out (auto-mask): without motion the loss is 0.
    """
    far = torch.full_like(made, torch.inf)
    least = torch.where(inside, made, far).amin(0)  # minimum reprojection
    counts = usable & (least < unmoved.amin(0))
    return _mean(torch.where(least.isinf(), 0.0, least), counts)


def spatial_loss(made: torch.Tensor, inside: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Return the mean error of images carried from neighbours, where both see the point.

    made, inside: (neighbours, n, height, width). usable: (n, height, width) bool.
    """
    return _mean(made, inside & usable)


def _mean(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return (values * counts).sum() / counts.sum().clamp(min=1)


def smoothness(inverse: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return how much an inverse depth (n, height, width) varies where the image (n, 3, height, width) does not."""
    even = inverse / (inverse.mean((1, 2), keepdim=True) + 1e-7)
    total = even.new_zeros(())
    for axis in (1, 2):
        edges = image.diff(dim=axis + 1).abs().mean(1)
        total = total + (even.diff(dim=axis).abs() * (-edges).exp()).mean()
    return total
