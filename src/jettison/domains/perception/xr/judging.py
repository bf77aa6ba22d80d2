"""What models of XR without data are calibrated and compared on: frames of noise, and how alike two answers are."""

from typing import Any

import torch
from torch import nn

FRAMES = 4  # that calibration sees, and others that answers are compared on
CALIBRATION, AGREEMENT = 1, 2  # their seeds


def random_frames(inputs: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise; of pictures with as much of it in every octave, so that they have coarse and fine parts as real ones
    do."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *sides: torch.randn(FRAMES, inputs.shape[1], *sides, generator=generator)
    if inputs.dim() != 4:
        return noise(*inputs.shape[2:])
    height, width = inputs.shape[-2:]
    octaves = [noise(max(1, height >> level), max(1, width >> level)) for level in range(6)]
    grown = [nn.functional.interpolate(each, size=(height, width), mode="bilinear") for each in octaves]
    total = torch.stack(grown).sum(0)
    return total / total.std()


def outputs(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def correlation(mine: torch.Tensor, yours: torch.Tensor) -> float:
    """Of (frames, ...), each less its mean over the frames."""
    if mine.shape != yours.shape:
        mine = mine.unsqueeze(1) if (flat := mine.dim() == 3) else mine  # maps without channels
        mine = nn.functional.interpolate(mine, size=yours.shape[-2:], mode="bilinear")
        mine = mine.squeeze(1) if flat else mine
    mine, yours = mine - mine.mean(0), yours - yours.mean(0)
    both = mine.flatten() @ yours.flatten() / (mine.norm() * yours.norm()).clamp(min=1e-12)
    return float(both.clamp(0, 1))
