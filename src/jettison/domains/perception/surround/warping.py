"""Carries images to other cameras by depth, in torch, so that a loss on colours can learn depth and motion."""

import torch
from torch.nn import functional

NEAREST = 1e-3  # metres in front of a camera; nearer points are not seen


def rigid(turn: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """Return transforms (n, 4, 4) of rotations as axis times angle (n, 3) in radians, and translations (n, 3)."""
    angle = (turn.square().sum(-1, keepdim=True) + 1e-12).sqrt()  # (n, 1); a root at 0 has no gradient
    x, y, z = (turn / angle).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sine, cosine = angle.sin()[..., None], angle.cos()[..., None]
    rotation = torch.eye(3, device=turn.device, dtype=turn.dtype) + sine * cross + (1 - cosine) * (cross @ cross)
    upper = torch.cat([rotation, move[..., None]], -1)  # (n, 3, 4)
    last = torch.tensor([0.0, 0, 0, 1], device=turn.device, dtype=turn.dtype).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, last], -2)


def inverse(transforms: torch.Tensor) -> torch.Tensor:
    """Return the inverses of rigid transforms (..., 4, 4)."""
    turn, move = transforms[..., :3, :3], transforms[..., :3, 3:]
    back = turn.transpose(-1, -2)
    return torch.cat([torch.cat([back, -back @ move], -1), transforms[..., 3:, :]], -2)


def warp(
    image: torch.Tensor,
    depth: torch.Tensor,
    intrinsics: torch.Tensor,
    others: torch.Tensor,
    to_other: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what another camera saw at the points of a depth map.

    image: (n, c, height, width), of the other camera. depth: (n, height, width) metres, of this camera.
    intrinsics, others: (n, 3, 3) of this and of the other camera. to_other: (n, 4, 4), from this frame to the other's.
    Returns colours (n, c, height, width), and which points lie in the other image, (n, height, width) bool.
    """
    count, height, width = depth.shape
    y, x = torch.meshgrid(
        *(torch.arange(side, device=depth.device, dtype=depth.dtype) for side in (height, width)), indexing="ij"
    )
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, height · width)
    rays = torch.linalg.solve(intrinsics, pixels.expand(count, -1, -1))
    points = to_other[:, :3, :3] @ (rays * depth.flatten(1)[:, None]) + to_other[:, :3, 3:]
    seen = others @ points  # (n, 3, height · width)
    ahead = seen[:, 2].clamp(min=NEAREST)
    sides = torch.tensor([width, height], device=depth.device, dtype=depth.dtype)
    place = (2 * (seen[:, :2] / ahead[:, None]).transpose(1, 2) + 1) / sides - 1  # (n, height · width, 2)
    inside = (place.abs() <= 1).all(-1) & (points[:, 2] > NEAREST)
    place = place.clamp(-2, 2).view(count, height, width, 2)
    colours = functional.grid_sample(image, place, mode="bilinear", padding_mode="border", align_corners=False)
    return colours, inside.view(count, height, width)
