"""Depth estimation (MiDaS v2.1 small) and depth refinement (sparse to dense)."""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import basic, conv, inverted, upsample, width_of

# EfficientNet-lite3: expansion, channels, kernel, stride, count.
LITE3 = (
    (1, 24, 3, 1, 1), (6, 32, 3, 2, 3), (6, 48, 5, 2, 3), (6, 96, 3, 2, 5), (6, 136, 5, 1, 5), (6, 232, 5, 2, 6),
    (6, 384, 3, 1, 1),
)  # fmt: skip
TAPS = (1, 2, 4, 6)  # stages whose outputs the decoder reads


class Fuse(nn.Module):
    """A fusion block of the decoder: add the skip features to the deeper ones, refine the sum, double its sides."""

    def __init__(self, channels: int, outside: int):
        super().__init__()
        unit = lambda: nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.first, self.second, self.out = unit(), unit(), nn.Conv2d(channels, outside, 1)

    def forward(self, below: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Fuse the output of the deeper block with encoder features of a finer resolution; the deepest has none.

        below: (batch, channels, h, w). skip: (batch, channels, height, width). Returns (batch, outside, 2·height,
        2·width).
        """
        x = below
        if skip is not None:
            x = upsample(below, skip)
            x = x + skip + self.first(skip)
        x = x + self.second(x)
        return self.out(nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


class MidasSmall(nn.Module):
    """Depth estimation with MiDaS v2.1 small (arXiv:1907.01341).

    Input (batch, 3, height, width), sides multiples of 32; output inverse depth (batch, height, width).
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        c = width_of(width)
        self.stem, inside, stages, taps = conv(3, c(32), 3, 2, act=nn.ReLU6), c(32), [], []
        for index, (expansion, channels, kernel, stride, count) in enumerate(LITE3):
            blocks = []
            for number in range(count):
                block_stride = stride if number == 0 else 1  # only the first block of a stage reduces the resolution
                blocks.append(inverted(inside, inside * expansion, c(channels), kernel, block_stride, act=nn.ReLU6))
                inside = c(channels)
            stages.append(nn.Sequential(*blocks))
            taps += [inside] * (index in TAPS)
        self.stages, wide = nn.ModuleList(stages), [c(64), c(128), c(256), c(512)]  # channels of the decoder
        self.scratch = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(taps, wide, strict=True)]
        )
        self.fuse = nn.ModuleList([Fuse(b, a) for a, b in zip([c(64), *wide[:-1]], wide, strict=True)])
        self.near = nn.Conv2d(c(64), c(32), 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(c(32), c(32), 3, padding=1), nn.ReLU(), nn.Conv2d(c(32), 1, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the inverse depth of a batch of pictures."""
        picture, taps = x, []
        x = self.stem(x)  # half of the resolution
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in TAPS:
                taps.append(x)  # 1/4, 1/8, 1/16 and 1/32 of the resolution
        skips = [layer(tap) for layer, tap in zip(self.scratch, taps, strict=True)]
        x = self.fuse[-1](skips[-1])
        for fuse, skip in zip(reversed(self.fuse[:-1]), reversed(skips[:-1]), strict=True):
            x = fuse(x, skip)
        return self.head(upsample(self.near(x), picture)).squeeze(1)  # (batch, height, width)


class UpProject(nn.Module):
    """An up-projection: insert zeros between the pixels, and add two paths of convolutions.

    It halves the channels and doubles the sides.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.long = nn.Sequential(conv(channels, half, 5), conv(half, half, 3, act=None))
        self.short = conv(channels, half, 5, act=None)
        weight = torch.zeros(channels, 1, 2, 2)  # of a transposed convolution that inserts the zeros
        weight[:, :, 0, 0] = 1
        self.register_buffer("spread", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to (batch, channels/2, 2·height, 2·width)."""
        x = nn.functional.conv_transpose2d(x, self.spread, stride=2, groups=x.shape[1])  # twice the sides, with zeros
        return (self.long(x) + self.short(x)).relu()


class SparseToDense(nn.Module):
    """Depth refinement with Sparse-to-Dense (arXiv:1709.07492; ResNet-18 encoder, up-projections as decoder).

    Input (batch, 4, height, width): colours and sparse depth; output depth (batch, height, width).
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        c = lambda channels: 16 * max(2, round(channels * width / 16))  # the decoder halves the channels four times
        self.stem = nn.Sequential(conv(4, c(64), 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks, inside = [], c(64)
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [basic(inside, c(channels), stride), basic(c(channels), c(channels))]
            inside = c(channels)
        self.encoder, self.narrow = nn.Sequential(*blocks), conv(inside, c(256), act=None)
        self.decoder = nn.Sequential(*(UpProject(c(256) >> level) for level in range(4)))
        self.head = nn.Conv2d(c(256) >> 4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the depth of a batch of frames."""
        depth = self.head(self.decoder(self.narrow(self.encoder(self.stem(x)))))  # (batch, 1, about height/2, width/2)
        return upsample(depth, x).squeeze(1)  # (batch, height, width)
