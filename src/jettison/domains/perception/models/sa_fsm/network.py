"""The depth network: a shared encoder, attention between the cameras at every level, a decoder, a pose network."""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from jettison.domains.perception.layers.backbone import STRIDES, Backbone, build_backbone
from jettison.domains.perception.models.sa_fsm.attention import CrossView
from jettison.domains.perception.surround.warping import rigid
from jettison.graph.own_models import OwnConfig, OwnModel

START = 10.0  # metres, the depth that new weights predict
SCALES = 4
POSE_WIDTHS = (16, 24, 32, 48, 64)
TURN, MOVE = 0.01, 0.1  # sizes of rotations (radians) and translations (metres) that new weights predict


class DecoderBlock(nn.Module):
    """Doubles the size of a feature map, and joins it with that of the encoder, if there is one."""

    def __init__(self, inputs: int, skip: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3), nn.Conv2d(outputs + skip, outputs, 3)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Return (n, outputs, 2 height, 2 width). x: (n, inputs, height, width). skip: of the size of the result."""
        x = functional.interpolate(functional.elu(self.conv1(_padded(x))), scale_factor=2.0, mode="nearest")
        return functional.elu(self.conv2(_padded(x if skip is None else torch.cat([x, skip], 1))))


def _padded(x: torch.Tensor) -> torch.Tensor:
    """Repeat the pixels of the border once on all sides."""
    return functional.pad(x, (1, 1, 1, 1), mode="replicate")


class PoseNetwork(nn.Module):
    """How the car moved between two moments, from the images of all cameras: one motion for the rig."""

    def __init__(self, views: int):
        super().__init__()
        widths = [6, *POSE_WIDTHS]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, 2, 1) for before, after in pairwise(widths))
        self.join = nn.Linear(views * widths[-1], widths[-1])
        self.motion = nn.Linear(widths[-1], 6)

    def forward(self, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Return transforms (batch, 4, 4) from the car's frame at the later moment to that at the earlier one.

        earlier, later: (batch, views, 3, height, width) from 0 to 1.
        """
        x = torch.cat([earlier, later], 2).flatten(0, 1) - 0.5  # (batch · views, 6, height, width)
        for conv in self.convs:
            x = functional.relu(conv(x))
        x = x.mean((2, 3)).unflatten(0, earlier.shape[:2]).flatten(1)  # (batch, views · channels)
        turn, move = self.motion(functional.relu(self.join(x))).chunk(2, 1)
        return rigid(TURN * turn, MOVE * move)


class SaFsm(OwnModel):
    """The network: images of a ring of cameras and what is known of them to one depth map each."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        views, height, width = config.views, config.height, config.width
        self.inputs = {"pixels": (views, 3, height, width), "focal": (views,), "yaw": (views,), "present": (views,)}
        self.outputs = {"depth": (views, height, width)}
        self.range, self.focal, self.flip = (config.least, config.most), config.focal, config.flip_average
        self.backbone: Backbone = build_backbone(config.backbone, config.widths, config.depths)
        channels = self.backbone.channels
        self.crosses = nn.ModuleList(
            CrossView(
                channel, _grid(config, stride), views, int(math.log2(max(1, config.grid // stride))), config.blocks,
                config.heads, config.neighbours, config.view_embedding,
            )
            for channel, stride in zip(channels, STRIDES, strict=True)
        )  # fmt: skip
        self.decoder = Decoder(channels, config.decoder)
        self.pose = PoseNetwork(views)
        low, high = (1 / depth for depth in self.range[::-1])
        share = (1 / min(max(START, 1.01 * self.range[0]), 0.99 * self.range[1]) - low) / (high - low)
        for head in self.decoder.heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.bias, math.log(share / (1 - share)))

    def compute(
        self, pixels: torch.Tensor, focal: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return ``depth``, (batch, views, height, width) metres along the cameras' axes.

        pixels: (batch, views, 3, height, width) from 0 to 1, in the order of the ring.
        focal: (batch, views), focal lengths as shares of the width. yaw: (batch, views) radians, positive to the left.
        present: (batch, views), 1 for cameras that are there; the others see black.
        """
        depth = self.depths(pixels, focal, yaw, present, 1)[0]
        if self.flip and not self.training:
            other = self.depths(*mirrored(pixels, focal, yaw, present), 1)[0]
            depth = (depth + around(other).flip(-1)) / 2
        return {"depth": depth}

    def depths(
        self, pixels: torch.Tensor, focal: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor, scales: int = SCALES
    ) -> list[torch.Tensor]:
        """Return depths (batch, views, height / 2^s, width / 2^s) for the first scales s. Inputs as for ``compute``."""
        pixels = pixels * present[..., None, None, None]
        features = self.backbone(pixels.flatten(0, 1))
        features = [cross(x, yaw, present > 0) for cross, x in zip(self.crosses, features, strict=True)]
        low, high = (1 / depth for depth in self.range[::-1])
        larger = (focal / self.focal)[..., None, None]
        return [
            larger / (low + (high - low) * logits.sigmoid()[:, 0].unflatten(0, (-1, present.shape[1])))
            for logits in self.decoder(features, scales)
        ]


class Decoder(nn.Module):
    """From feature maps of four sizes to inverse depths of four sizes."""

    def __init__(self, channels: tuple[int, ...], widths: list[int]):
        super().__init__()
        skips = [*channels[:-1][::-1], 0, 0]  # at strides 16, 8, 4; none at 2 and 1
        before = [channels[-1], *widths[:0:-1]]
        self.blocks = nn.ModuleList(
            DecoderBlock(inputs, skip, outputs)
            for inputs, skip, outputs in zip(before, skips, widths[::-1], strict=True)
        )
        self.heads = nn.ModuleList(nn.Conv2d(widths[scale], 1, 3, padding=1) for scale in range(SCALES))

    def forward(self, features: list[torch.Tensor], scales: int) -> list[torch.Tensor]:
        """Return logits (n, 1, height / 2^s, width / 2^s) of inverse depths for the first scales s."""
        x, skips, logits = features[-1], [*features[:-1][::-1], None, None], {}
        for number, (block, skip) in enumerate(zip(self.blocks, skips, strict=True)):
            x = block(x, skip)
            if (scale := len(self.blocks) - 1 - number) < scales:
                logits[scale] = self.heads[scale](x)
        return [logits[scale] for scale in range(scales)]


def _grid(config: OwnConfig, stride: int) -> tuple[int, int]:
    side = max(stride, config.grid)
    return -(-config.height // side), -(-config.width // side)


def around(x: torch.Tensor) -> torch.Tensor:
    """Return (batch, views, ...) in the order of the ring the other way round; the first camera stays first."""
    return torch.cat([x[:, :1], x[:, 1:].flip(1)], 1)


def mirrored(
    pixels: torch.Tensor, focal: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the inputs of the mirrored world: images mirrored, and left and right cameras in each other's place."""
    return around(pixels).flip(-1), around(focal), -around(yaw), around(present)
