"""The losses of the stages: depth of matches, colours carried between moments and cameras, smoothness.

Weights are those of SurroundDepth (arXiv:2204.03636), except that depths of matches are compared by their logarithms,
so that the far ones, which are least exact, count no more than the near ones. That is ours, as is to keep them in the
last stage, which holds the scale.
"""

import torch
from torch.nn import functional

from jettison.domains.perception.modelling import Tensors
from jettison.domains.perception.models.sa_fsm.attention import turned
from jettison.domains.perception.models.sa_fsm.network import SaFsm, around, mirrored
from jettison.domains.perception.surround.photometric import (
    dissimilarity,
    smoothness,
    spatial_loss,
    temporal_loss,
)
from jettison.domains.perception.surround.warping import inverse, warp

PSEUDO, SPATIAL, SMOOTH = 0.1, 0.075, 1e-3  # weights beside the temporal photometric loss
GAIN = 0.2  # of the brightness in training


def match_loss(model: SaFsm, inputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Return the loss of a round: depths of matches, and smoothness.

    While the model trains, half of the batches see the mirrored world.
    """
    pseudo = targets["pseudo"]
    values = tuple(inputs[name] for name in model.inputs)
    if model.training and bool(torch.rand(()) < 0.5):
        values, pseudo = mirrored(*values), around(pseudo).flip(-1)
    pixels = values[0]
    depths = model.depths(_brightened(model, pixels), *values[1:])
    return _pseudo(depths, pseudo) + SMOOTH * _smooth(depths, pixels)


def photometric_loss(model: SaFsm, inputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Return the loss of the fine-tuning: colours of other moments and of neighbours, matches, and smoothness."""
    pixels, present = inputs["pixels"], inputs["present"]
    others = tuple(inputs[name] for name in model.inputs if name != "pixels")
    depths = model.depths(_brightened(model, pixels), *others)
    total = PSEUDO * _pseudo(depths, targets["pseudo"]) + SMOOTH * _smooth(depths, pixels)
    before, after = (image.to(pixels.dtype) / 255 for image in targets["around"].unbind(1))  # (batch, views, 3, h, w)
    poses, back = targets["poses"], inverse(targets["poses"])
    motions = [inverse_motion(model.pose(before, pixels), False), inverse_motion(model.pose(pixels, after), True)]
    usable = (targets["usable"] & (present > 0)[..., None, None]).flatten(0, 1)
    true, matrix = pixels.flatten(0, 1), targets["intrinsics"].flatten(0, 1)
    unmoved = torch.stack([dissimilarity(image.flatten(0, 1), true) for image in (before, after)])
    there = targets["moments"].t().repeat_interleave(pixels.shape[1], 1)[..., None, None] > 0  # (2, n, 1, 1)
    unmoved = torch.where(there, unmoved, torch.inf)
    for depth in depths:
        full = _resized(depth, pixels.shape[-2:]).flatten(0, 1)
        errors, inside = [], []
        for image, motion in zip((before, after), motions, strict=True):
            to_other = (back @ motion[:, None] @ poses).flatten(0, 1)  # the same camera at the other moment
            made, seen = warp(image.flatten(0, 1), full, matrix, matrix, to_other)
            errors.append(dissimilarity(made, true))
            inside.append(seen)
        temporal = temporal_loss(torch.stack(errors), unmoved, torch.stack(inside) & there, usable)
        errors, inside = [], []
        for step in (1, -1):
            to_other = (turned(back, step) @ poses).flatten(0, 1)
            beside, lens = turned(pixels, step).flatten(0, 1), turned(targets["intrinsics"], step).flatten(0, 1)
            made, seen = warp(beside, full, matrix, lens, to_other)
            errors.append(dissimilarity(made, true))
            inside.append(seen & (turned(present, step) > 0).flatten()[:, None, None])
        total = total + (temporal + SPATIAL * spatial_loss(torch.stack(errors), torch.stack(inside), usable)) / len(
            depths
        )
    return total


def inverse_motion(later_to_earlier: torch.Tensor, to_later: bool) -> torch.Tensor:
    """Return the transform from the car's frame now to that at the other moment, (batch, 4, 4).

    later_to_earlier: what the pose network returns. to_later: whether the other moment is the later one.
    """
    return inverse(later_to_earlier) if to_later else later_to_earlier


def _brightened(model: SaFsm, pixels: torch.Tensor) -> torch.Tensor:
    """Make each frame of a batch brighter or darker at random while the model trains."""
    if not model.training:
        return pixels
    gain = 1 + GAIN * (2 * torch.rand(len(pixels), 1, 1, 1, 1) - 1)
    return (pixels * gain.to(pixels)).clamp(0, 1)


def _resized(depth: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(depth, size, mode="bilinear", align_corners=False)


def _pseudo(depths: list[torch.Tensor], pseudo: torch.Tensor) -> torch.Tensor:
    """The mean difference of logarithms from the depths of matches, over all scales."""
    counts = pseudo > 0
    wanted = torch.where(counts, pseudo, 1.0).log()
    parts = [
        ((_resized(depth, pseudo.shape[-2:]).log() - wanted).abs() * counts).sum() / counts.sum().clamp(min=1)
        for depth in depths
    ]
    return torch.stack(parts).mean()


def _smooth(depths: list[torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    total, image = depths[0].new_zeros(()), pixels.flatten(0, 1)
    for scale, depth in enumerate(depths):
        small = functional.interpolate(image, depth.shape[-2:], mode="area")
        total = total + smoothness(1 / depth.flatten(0, 1), small) / 2**scale
    return total / len(depths)
