"""Structural similarity of images, differentiable."""

import torch
from torch.nn.functional import conv2d

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(
    images: torch.Tensor,
    others: torch.Tensor,
    data_range: float | torch.Tensor = 1.0,
    window: int = WINDOW,
    sigma: float = SIGMA,
) -> torch.Tensor:
    """Compute the mean structural similarity of every image with its counterpart.

    images, others: (batch, channels, height, width).
    data_range: the difference between the largest and the smallest possible value; or one per image, (batch,).
    window: side of the Gaussian window; images that are smaller have the largest odd one that fits.
    Returns (batch,) float32, 1 for equal images. Windows lie inside the image.
    Raises ValueError for shapes that differ.
    Source: Wang et al., Image quality assessment, IEEE TIP 13(4), 2004, equation 13.
    """
    if images.shape != others.shape or images.ndim != 4:
        raise ValueError(f"two batches of images of one shape are needed: {tuple(images.shape)}, {tuple(others.shape)}")
    x, y = images.float(), others.float()
    channels, smallest = x.shape[1], min(x.shape[-2:])
    kernel = _gaussian(min(window, smallest - (smallest + 1) % 2), sigma).to(x)  # (side, side)
    kernel = kernel.expand(channels, 1, *kernel.shape)
    mean = lambda values: conv2d(values, kernel, groups=channels)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    span = torch.as_tensor(data_range, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1) ** 2
    c1, c2 = C1 * span, C2 * span
    values = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    values = values / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return values.mean((1, 2, 3))


def _gaussian(side: int, sigma: float) -> torch.Tensor:
    """Return a Gaussian window with sum 1, (side, side)."""
    line = torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    return line[:, None] * line[None, :]
