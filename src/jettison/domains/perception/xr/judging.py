"""Calibrate and compare XR models without data: frames of noise, and the correlation of two outputs."""

from typing import Any

import torch
from torch import nn

FRAMES = 4  # number of frames, both for calibration and for the comparison of outputs
CALIBRATION, AGREEMENT = 1, 2  # seeds of the frames for calibration, and of those for the comparison


def random_frames(inputs: torch.Tensor, seed: int) -> torch.Tensor:
    """Return frames of noise in the shape of ``inputs``.

    Pictures get noise of the same strength in six octaves of resolution, so that they have coarse and fine structure as
    real pictures do.
    inputs: (any, channels, ...); four dimensions mean pictures.
    Returns (4, channels, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *sides: torch.randn(FRAMES, inputs.shape[1], *sides, generator=generator)
    if inputs.dim() != 4:
        return noise(*inputs.shape[2:])
    height, width = inputs.shape[-2:]
    octaves = [noise(max(1, height >> level), max(1, width >> level)) for level in range(6)]
    upsampled = [nn.functional.interpolate(octave, size=(height, width), mode="bilinear") for octave in octaves]
    total = torch.stack(upsampled).sum(0)  # (frames, channels, height, width)
    return total / total.std()


def outputs(result: Any) -> list[torch.Tensor]:
    """Return a model's result, one tensor or several, as a list of tensors."""
    return [result] if isinstance(result, torch.Tensor) else list(result)


def correlation(mine: torch.Tensor, yours: torch.Tensor) -> float:
    """Return the correlation of two models' outputs, 0 to 1, after subtracting from each its mean over the frames.

    mine: (frames, ...); maps of another size are resized to that of ``yours``.
    yours: (frames, ...), of the original model.
    """
    if mine.shape != yours.shape:
        mine = mine.unsqueeze(1) if (flat := mine.dim() == 3) else mine  # maps without channels get one
        mine = nn.functional.interpolate(mine, size=yours.shape[-2:], mode="bilinear")
        mine = mine.squeeze(1) if flat else mine
    mine, yours = mine - mine.mean(0), yours - yours.mean(0)
    both = mine.flatten() @ yours.flatten() / (mine.norm() * yours.norm()).clamp(min=1e-12)
    return float(both.clamp(0, 1))
