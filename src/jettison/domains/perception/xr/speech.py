"""Keyword detection (res8-narrow), speech recognition (the encoder of an Emformer), action segmentation (ED-TCN)."""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import width_of

CONTEXT = 32  # frames of the past that an Emformer segment sees


class Res8(nn.Module):
    """(batch, 1, 98 frames, 40 coefficients) -> (batch, 12) (arXiv:1710.10361, res8-narrow)."""

    def __init__(self, width: float = 1.0, classes: int = 12):
        super().__init__()
        c = max(8, round(19 * width))
        self.first, self.pool = nn.Conv2d(1, c, 3, padding=1, bias=False), nn.AvgPool2d((4, 3))
        self.convs = nn.ModuleList([nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(6)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c, affine=False) for _ in range(6)])
        self.head = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = before = self.pool(self.first(x).relu())
        for place, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = layer(x).relu()
            if place % 2:
                x = before = x + before
            x = norm(x)
        return self.head(x.mean((2, 3)))


class EmformerLayer(nn.Module):
    """A segment attends to itself and to what the layer kept of the segment before. The memory bank of the original is
    left out: the official table has no layers for it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(3)])

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (batch, time, dim). past: keys and values, (batch, CONTEXT, 2·dim). Returns x and the new past."""
        y = self.norms[0](x)
        both = torch.cat([past, self.key_value(y)], 1)
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, head_dim)
        keys, values = both.chunk(2, -1)
        found = nn.functional.scaled_dot_product_attention(split(self.query(y)), split(keys), split(values))
        x = x + self.out(found.transpose(1, 2).flatten(2))
        x = x + self.down(self.up(self.norms[1](x)).relu())
        return self.norms[2](x), both[:, -CONTEXT:]


class Emformer(nn.Module):
    """(batch, 512 features, 128 frames) -> (batch, 512, 128), one segment of a stream (arXiv:2010.10759, 24 layers).

    Every call goes on from an empty past, so that each costs the same; ``stream`` keeps it.
    """

    def __init__(self, width: float = 1.0, layers: int = 24):
        super().__init__()
        dim = 64 * max(1, round(8 * width))
        self.dim, self.inside = dim, nn.Identity() if dim == 512 else nn.Linear(512, dim)
        self.layers = nn.ModuleList([EmformerLayer(dim, dim // 64) for _ in range(layers)])

    def stream(self, x: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x, kept = self.inside(x.transpose(1, 2)), []
        for layer, before in zip(self.layers, past, strict=True):
            x, now = layer(x, before)
            kept.append(now)
        return x.transpose(1, 2), kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        empty = x.new_zeros(len(x), CONTEXT, 2 * self.dim)
        return self.stream(x, [empty] * len(self.layers))[0]


class EDTCN(nn.Module):
    """(batch, 128 features, time) -> (batch, 11 actions, time), time a multiple of 4 (arXiv:1611.05267)."""

    def __init__(self, width: float = 1.0, classes: int = 11, kernel: int = 25):
        super().__init__()
        c = width_of(width)
        layer = lambda inside, outside: nn.Sequential(
            nn.Conv1d(inside, outside, kernel, padding=kernel // 2), nn.BatchNorm1d(outside), nn.ReLU()
        )
        self.down = nn.Sequential(layer(128, c(64)), nn.MaxPool1d(2), layer(c(64), c(96)), nn.MaxPool1d(2))
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), layer(c(96), c(96)), nn.Upsample(scale_factor=2))
        self.last = nn.Sequential(layer(c(96), c(64)), nn.Conv1d(c(64), classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.down(x)))
