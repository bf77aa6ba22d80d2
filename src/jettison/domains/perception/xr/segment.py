"""Semantic segmentation: HRViT-b1, branches of four resolutions with attention in crossed stripes (arXiv:2111.01236).

Our reconstruction from the paper and the official table:

- Channels, windows, expansions and the number of modules per stage are those of b1.
- The head is that of SegFormer, as in the paper; the official table has a head for classification.
"""

from itertools import pairwise

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import Sum, conv, upsample, width_of

CHANNELS, WINDOWS, EXPANSIONS = (32, 64, 128, 256), (1, 2, 7, 7), (4, 4, 4, 4)
MODULES, BLOCKS = (1, 1, 3, 2), (1, 1, 6, 2)  # modules per stage; blocks per branch, over all its modules


class Stripes(nn.Module):
    """Attention in crossed stripes: half of the heads attend within horizontal stripes, half within vertical ones.

    window: rows or columns of a stripe. The keys are also the values.
    """

    def __init__(self, channels: int, window: int, heads: int = 2):
        super().__init__()
        self.window, self.heads = window, heads
        self.query, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to the same shape, with a residual connection."""
        y = self.norm(x.permute(0, 2, 3, 1))  # (batch, height, width, channels), also all tensors below
        query, value = self.query(y), self.value(y)
        half = x.shape[1] // 2
        across = self.attend(query[..., :half], value[..., :half])
        down = self.attend(query[..., half:].transpose(1, 2), value[..., half:].transpose(1, 2)).transpose(1, 2)
        local = self.local(nn.functional.hardswish(value.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.out(torch.cat([across, down], -1) + local).permute(0, 3, 1, 2)

    def attend(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend within stripes of ``window`` rows.

        query, value: (batch, height, width, channels); value is also the key.
        Returns the same shape. The last stripe is padded with zeros to ``window`` rows.
        """
        batch, height, width, channels = query.shape
        extra = -height % self.window
        padded = [nn.functional.pad(t, (0, 0, 0, 0, 0, extra)) for t in (query, value)]
        heads = max(1, self.heads // 2)
        shape = (batch * (height + extra) // self.window, self.window * width, heads, channels // heads)
        query, value = (t.reshape(shape).transpose(1, 2) for t in padded)  # (stripes, heads, positions, head_dim)
        attended = nn.functional.scaled_dot_product_attention(query, value, value)
        return attended.transpose(1, 2).reshape(batch, height + extra, width, channels)[:, :height]


class MixedMLP(nn.Module):
    """A residual MLP: expand, apply a 3x3 depthwise convolution to half of the channels and a 5x5 to the rest, project.

    expansion: factor of the channels inside.
    """

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        self.norm, self.up, self.down = (
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, wide, 1),
            nn.Conv2d(wide, channels, 1),
        )
        self.three = nn.Conv2d(wide // 2, wide // 2, 3, padding=1, groups=wide // 2)
        self.five = nn.Conv2d(wide // 2, wide // 2, 5, padding=2, groups=wide // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        near, far = self.up(self.norm(x)).chunk(2, 1)  # half of the expanded channels each
        mixed = nn.functional.gelu(torch.cat([self.three(near), self.five(far)], 1))
        return x + self.down(mixed)


class Exchange(nn.Module):
    """Exchange between resolutions: every branch becomes the sum of all branches at its resolution and channels.

    channels: of the branches, from the highest resolution to the lowest.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        # From a to b channels, over ``halvings`` steps to a lower resolution; to a higher one, ``forward`` upsamples.
        path = lambda a, b, halvings: (
            conv(a, b, act=None)
            if halvings <= 0
            else nn.Sequential(
                nn.Conv2d(a, a, 2 * 2**halvings - 1, 2**halvings, 2**halvings - 1, groups=a, bias=False),
                conv(a, b, act=None),
            )
        )
        self.paths = nn.ModuleList(
            [
                nn.ModuleList([path(a, b, target - source) for source, a in enumerate(channels)])
                for target, b in enumerate(channels)
            ]
        )

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the new branches, in the shapes of the old ones."""
        out = []
        for target, paths in enumerate(self.paths):
            total = branches[target]
            for source, (path, branch) in enumerate(zip(paths, branches, strict=True)):
                if source != target:
                    total = total + (upsample(path(branch), total) if source > target else path(branch))
            out.append(total.relu())
        return out


class HRViT(nn.Module):
    """Semantic segmentation with HRViT-b1.

    Input (batch, 3, height, width), sides multiples of 32; output class scores (batch, 19, height/4, width/4).
    """

    def __init__(self, width: float = 1.0, classes: int = 19):
        super().__init__()
        channels = [width_of(width)(count) for count in CHANNELS]
        self.stem = nn.Sequential(conv(3, channels[0], 3, 2), conv(channels[0], channels[0], 3, 2))
        self.grow = nn.ModuleList([conv(a, b, 3, 2) for a, b in pairwise(channels)])
        self.stages = nn.ModuleList()
        for stage, modules in enumerate(MODULES):
            self.stages.append(nn.ModuleList([self._module(channels[: stage + 1], stage) for _ in range(modules)]))
        self.mixers = nn.ModuleList([nn.Conv2d(inside, channels[-1], 1) for inside in channels])
        self.head = nn.Sequential(conv(4 * channels[-1], channels[-1]), nn.Conv2d(channels[-1], classes, 1))

    def _module(self, channels: list[int], stage: int) -> nn.ModuleDict:
        """Build a module of a stage, with a branch for every resolution so far."""
        branches = []
        for index, width in enumerate(channels):
            count = max(1, BLOCKS[index] // sum(MODULES[max(index, 2) :]))
            block = lambda width=width, index=index: nn.Sequential(
                Stripes(width, WINDOWS[index]), MixedMLP(width, EXPANSIONS[index])
            )
            branches.append(nn.Sequential(*(block() for _ in range(count))))
        # After attention, every resolution has a residual block with a dense 3x3 convolution, as in HRNet.
        local = [Sum(conv(width, width, 3, act=None), act=nn.ReLU()) for width in channels]
        return nn.ModuleDict(
            {"branches": nn.ModuleList(branches), "local": nn.ModuleList(local), "exchange": Exchange(channels)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores at a quarter of the resolution."""
        branches = [self.stem(x)]  # 1/4 of the resolution; the next branches have 1/8, 1/16 and 1/32
        for stage, modules in enumerate(self.stages):
            if stage:
                branches.append(self.grow[stage - 1](branches[-1]))
            for module in modules:
                branches = [block(branch) for block, branch in zip(module["branches"], branches, strict=True)]
                branches = [block(branch) for block, branch in zip(module["local"], branches, strict=True)]
                branches = module["exchange"](branches)
        mixed = [upsample(mixer(branch), branches[0]) for mixer, branch in zip(self.mixers, branches, strict=True)]
        return self.head(torch.cat(mixed, 1))
