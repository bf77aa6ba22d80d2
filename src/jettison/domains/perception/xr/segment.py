"""Semantic segmentation: HRViT-b1, branches of four resolutions with attention in crossed stripes (arXiv:2111.01236).

A reconstruction by the paper and the official table: channels, windows, expansions and the number of modules per stage
are those of b1; the head is that of SegFormer, as in the paper, where the table has one for classification.
"""

from itertools import pairwise

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import Sum, conv, upsample, width_of

CHANNELS, WINDOWS, EXPANSIONS = (32, 64, 128, 256), (1, 2, 7, 7), (4, 4, 4, 4)
MODULES, BLOCKS = (1, 1, 3, 2), (1, 1, 6, 2)  # modules of each stage; blocks of each branch in all its modules


class Stripes(nn.Module):
    """Half of the heads attend within horizontal stripes, half within vertical ones; keys are values."""

    def __init__(self, channels: int, window: int, heads: int = 2):
        super().__init__()
        self.window, self.heads = window, heads
        self.query, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> the same."""
        y = self.norm(x.permute(0, 2, 3, 1))
        query, value = self.query(y), self.value(y)
        half = x.shape[1] // 2
        across = self.attend(query[..., :half], value[..., :half])
        down = self.attend(query[..., half:].transpose(1, 2), value[..., half:].transpose(1, 2)).transpose(1, 2)
        local = self.local(nn.functional.hardswish(value.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.out(torch.cat([across, down], -1) + local).permute(0, 3, 1, 2)

    def attend(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels), within groups of ``window`` rows; fewer in the last one are padded."""
        batch, height, width, channels = query.shape
        extra = -height % self.window
        padded = [nn.functional.pad(t, (0, 0, 0, 0, 0, extra)) for t in (query, value)]
        heads = max(1, self.heads // 2)
        shape = (batch * (height + extra) // self.window, self.window * width, heads, channels // heads)
        query, value = (t.reshape(shape).transpose(1, 2) for t in padded)
        found = nn.functional.scaled_dot_product_attention(query, value, value)
        return found.transpose(1, 2).reshape(batch, height + extra, width, channels)[:, :height]


class MixedMLP(nn.Module):
    """Expand, a 3x3 and a 5x5 depthwise convolution of half the channels each, project."""

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
        near, far = self.up(self.norm(x)).chunk(2, 1)
        mixed = nn.functional.gelu(torch.cat([self.three(near), self.five(far)], 1))
        return x + self.down(mixed)


class Exchange(nn.Module):
    """Every branch gets the sum of all, brought to its resolution and channels."""

    def __init__(self, channels: list[int]):
        super().__init__()
        path = lambda a, b, steps: (
            conv(a, b, act=None)
            if steps <= 0
            else nn.Sequential(
                nn.Conv2d(a, a, 2 * 2**steps - 1, 2**steps, 2**steps - 1, groups=a, bias=False), conv(a, b, act=None)
            )
        )
        self.paths = nn.ModuleList(
            [nn.ModuleList([path(a, b, to - of) for of, a in enumerate(channels)]) for to, b in enumerate(channels)]
        )

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        out = []
        for to, paths in enumerate(self.paths):
            total = branches[to]
            for of, (path, branch) in enumerate(zip(paths, branches, strict=True)):
                if of != to:
                    total = total + (upsample(path(branch), total) if of > to else path(branch))
            out.append(total.relu())
        return out


class HRViT(nn.Module):
    """(batch, 3, height, width) -> (batch, 19, height/4, width/4), sides multiples of 32."""

    def __init__(self, width: float = 1.0, classes: int = 19):
        super().__init__()
        channels = [width_of(width)(each) for each in CHANNELS]
        self.stem = nn.Sequential(conv(3, channels[0], 3, 2), conv(channels[0], channels[0], 3, 2))
        self.grow = nn.ModuleList([conv(a, b, 3, 2) for a, b in pairwise(channels)])
        self.stages = nn.ModuleList()
        for stage, modules in enumerate(MODULES):
            self.stages.append(nn.ModuleList([self._module(channels[: stage + 1], stage) for _ in range(modules)]))
        self.mixers = nn.ModuleList([nn.Conv2d(each, channels[-1], 1) for each in channels])
        self.head = nn.Sequential(conv(4 * channels[-1], channels[-1]), nn.Conv2d(channels[-1], classes, 1))

    def _module(self, channels: list[int], stage: int) -> nn.ModuleDict:
        branches = []
        for place, each in enumerate(channels):
            count = max(1, BLOCKS[place] // sum(MODULES[max(place, 2) :]))
            block = lambda each=each, place=place: nn.Sequential(
                Stripes(each, WINDOWS[place]), MixedMLP(each, EXPANSIONS[place])
            )
            branches.append(nn.Sequential(*(block() for _ in range(count))))
        # what every resolution has beside attention: a residual of dense 3x3 convolutions, as HRNet's
        local = [Sum(conv(each, each, 3, act=None), act=nn.ReLU()) for each in channels]
        return nn.ModuleDict(
            {"branches": nn.ModuleList(branches), "local": nn.ModuleList(local), "exchange": Exchange(channels)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [self.stem(x)]
        for stage, modules in enumerate(self.stages):
            if stage:
                branches.append(self.grow[stage - 1](branches[-1]))
            for module in modules:
                branches = [block(each) for block, each in zip(module["branches"], branches, strict=True)]
                branches = [block(each) for block, each in zip(module["local"], branches, strict=True)]
                branches = module["exchange"](branches)
        mixed = [upsample(mixer(each), branches[0]) for mixer, each in zip(self.mixers, branches, strict=True)]
        return self.head(torch.cat(mixed, 1))
