"""Frames of a face avatar, whatever made them."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class AvatarFrames:
    """Frames of one person, n of them.

    average: texture, averaged over the cameras, (n, 3, height, width), 0 to 1; what an encoder sees.
    texture: as one camera sees it, the same shape; what a decoder shall give.
    mask: texels that this camera sees, (n, 1, height, width), 0 to 1.
    mesh: vertices, (n, vertices, 3).
    view: unit vectors from the face to the camera, (n, 3). camera: numbers of the cameras, (n,) int64.
    expression: numbers of the expressions, (n,) int64.
    """

    average: torch.Tensor
    texture: torch.Tensor
    mask: torch.Tensor
    mesh: torch.Tensor
    view: torch.Tensor
    camera: torch.Tensor
    expression: torch.Tensor

    def __len__(self) -> int:
        return len(self.expression)

    def __getitem__(self, places: torch.Tensor | slice) -> "AvatarFrames":
        return AvatarFrames(*(getattr(self, field.name)[places] for field in fields(self)))


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of frames, as multiface has them: a mean per value, and one deviation for all.

    texture_mean: (3, height, width); mesh_mean: (vertices, 3).
    """

    texture_mean: torch.Tensor
    texture_std: float
    mesh_mean: torch.Tensor
    mesh_std: float


def normalization(frames: AvatarFrames) -> Normalization:
    """Compute mean and deviation of frames. Those of textures are over all cameras, and texels that were seen."""
    texture, mesh = frames.average.mean(0), frames.mesh.mean(0)
    total = ((frames.texture - texture).square() * frames.mask).double().sum() / (3 * frames.mask.double().sum())
    deviations = float(total) ** 0.5, float((frames.mesh - mesh).double().square().mean()) ** 0.5
    return Normalization(texture, max(deviations[0], 1e-6), mesh, max(deviations[1], 1e-6))


def join(parts: list[AvatarFrames]) -> AvatarFrames:
    """Join frames in their order."""
    return AvatarFrames(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(AvatarFrames)))
