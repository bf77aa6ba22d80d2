"""Eye segmentation (RITNet) and gaze estimation (FBNet-C)."""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import conv, inverted, upsample, width_of

# FBNet-C: expansion, channels, kernel and stride of its 21 blocks. The skip block of the paper's table is left out.
FBNET_C = (
    (1, 16, 3, 1), (6, 24, 3, 2), (1, 24, 3, 1), (1, 24, 3, 1), (6, 32, 5, 2), (3, 32, 5, 1), (6, 32, 5, 1),
    (6, 32, 3, 1), (6, 64, 5, 2), (3, 64, 5, 1), (6, 64, 5, 1), (6, 64, 5, 1), (6, 112, 5, 1), (6, 112, 5, 1),
    (6, 112, 5, 1), (3, 112, 5, 1), (6, 184, 5, 2), (6, 184, 5, 1), (6, 184, 5, 1), (6, 184, 5, 1), (6, 352, 3, 1),
)  # fmt: skip


class Dense(nn.Module):
    """RITNet's block of the encoder: three 3x3 convolutions.

    The second and third receive the input and all earlier outputs, reduced by a 1x1 convolution.
    pool: halve the resolution first.
    """

    def __init__(self, inside: int, channels: int, pool: bool):
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if pool else nn.Identity()
        self.first = conv(inside, channels, 3, act=nn.LeakyReLU)
        self.second = nn.Sequential(
            nn.Conv2d(inside + channels, channels, 1), conv(channels, channels, 3, act=nn.LeakyReLU)
        )
        self.third = nn.Sequential(
            nn.Conv2d(inside + 2 * channels, channels, 1), conv(channels, channels, 3, act=nn.LeakyReLU)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inside, height, width) to ``channels`` channels, at half the resolution if it pools."""
        x = self.pool(x)
        first = self.first(x)
        second = self.second(torch.cat([x, first], 1))
        return self.third(torch.cat([x, first, second], 1))


class DenseUp(nn.Module):
    """RITNet's block of the decoder: two such convolutions, on the deeper features and the encoder's features."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), conv(channels, channels, 3, act=nn.LeakyReLU))
        self.second = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), conv(channels, channels, 3, act=nn.LeakyReLU))

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Resize the deeper features ``below`` to the size of ``skip``, and combine both."""
        x = torch.cat([upsample(below, skip), skip], 1)  # (batch, 2·channels, height, width)
        return self.second(torch.cat([x, self.first(x)], 1))


class RITNet(nn.Module):
    """Eye segmentation with RITNet (arXiv:1910.00694).

    Input (batch, 1, height, width); output (batch, 4, height, width): background, sclera, iris, pupil.
    """

    def __init__(self, width: float = 1.0, classes: int = 4):
        super().__init__()
        c = width_of(width)(32)
        self.down = nn.ModuleList([Dense(1 if level == 0 else c, c, level > 0) for level in range(5)])
        self.up = nn.ModuleList([DenseUp(c) for _ in range(4)])
        self.head = nn.Conv2d(c, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores of every pixel."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(x, skip)
        return self.head(x)


class FBNetC(nn.Module):
    """Gaze estimation with FBNet-C (EyeCoD, ISCA 2022; FBNet-C: arXiv:1812.03443).

    Input (batch, 3, height, width); output (batch, 3), the direction of the gaze.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        c, inside = width_of(width), width_of(width)(16)
        blocks = [conv(3, inside, 3, 2)]
        for expansion, channels, kernel, stride in FBNET_C:
            blocks.append(inverted(inside, inside * expansion, c(channels), kernel, stride))
            inside = c(channels)
        self.features = nn.Sequential(*blocks, conv(inside, c(1984)))
        self.gaze = nn.Sequential(nn.Linear(c(1984), 1000), nn.ReLU(), nn.Linear(1000, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the direction of the gaze."""
        return self.gaze(self.features(x).mean((2, 3)))
