"""Models of sequences: keyword detection (res8-narrow), speech recognition (Emformer encoder), action segmentation
(ED-TCN)."""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import width_of

CONTEXT = 32  # past frames that an Emformer segment attends to


class Res8(nn.Module):
    """Keyword detection with res8-narrow (arXiv:1710.10361).

    Input (batch, 1, 98 frames, 40 coefficients); output class scores (batch, 12).
    """

    def __init__(self, width: float = 1.0, classes: int = 12):
        super().__init__()
        c = max(8, round(19 * width))
        self.first, self.pool = nn.Conv2d(1, c, 3, padding=1, bias=False), nn.AvgPool2d((4, 3))
        self.convs = nn.ModuleList([nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(6)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c, affine=False) for _ in range(6)])
        self.head = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores."""
        x = residual = self.pool(self.first(x).relu())
        for index, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = layer(x).relu()
            if index % 2:  # a residual connection around every two convolutions
                x = residual = x + residual
            x = norm(x)
        return self.head(x.mean((2, 3)))


class EmformerLayer(nn.Module):
    """A layer of the Emformer: a segment attends to itself and to keys and values of the segment before.

    The memory bank of the original is left out, because the official table has no layers for it.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(3)])

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Process a segment.

        x: (batch, time, dim). past: (batch, CONTEXT, 2·dim), keys and values of the frames before.
        Returns x (batch, time, dim) and the new past (batch, CONTEXT, 2·dim).
        """
        y = self.norms[0](x)
        keys_values = torch.cat([past, self.key_value(y)], 1)  # (batch, CONTEXT + time, 2·dim)
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, head_dim)
        keys, values = keys_values.chunk(2, -1)
        attended = nn.functional.scaled_dot_product_attention(split(self.query(y)), split(keys), split(values))
        x = x + self.out(attended.transpose(1, 2).flatten(2))  # (batch, time, dim)
        x = x + self.down(self.up(self.norms[1](x)).relu())
        return self.norms[2](x), keys_values[:, -CONTEXT:]


class Emformer(nn.Module):
    """Speech recognition: the encoder of an Emformer (arXiv:2010.10759, 24 layers), for one segment of a stream.

    Input (batch, 512 features, 128 frames); output (batch, dim, 128 frames), where dim is 512 at full width.
    A call starts from an empty past, so that every call costs the same; ``stream`` continues from a past.
    """

    def __init__(self, width: float = 1.0, layers: int = 24):
        super().__init__()
        dim = 64 * max(1, round(8 * width))
        self.dim, self.inside = dim, nn.Identity() if dim == 512 else nn.Linear(512, dim)
        self.layers = nn.ModuleList([EmformerLayer(dim, dim // 64) for _ in range(layers)])

    def stream(self, x: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Process a segment of a stream.

        x: (batch, 512, time). past: for every layer (batch, CONTEXT, 2·dim).
        Returns the output (batch, dim, time) and the new past.
        """
        x, new_past = self.inside(x.transpose(1, 2)), []  # (batch, time, dim)
        for layer, layer_past in zip(self.layers, past, strict=True):
            x, layer_new_past = layer(x, layer_past)
            new_past.append(layer_new_past)
        return x.transpose(1, 2), new_past

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Process a segment with a past of zeros."""
        empty = x.new_zeros(len(x), CONTEXT, 2 * self.dim)
        return self.stream(x, [empty] * len(self.layers))[0]


class EDTCN(nn.Module):
    """Action segmentation with ED-TCN (arXiv:1611.05267).

    Input (batch, 128 features, time), time a multiple of 4; output class scores (batch, 11 actions, time).
    """

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
        """Return the class scores of every point in time."""
        return self.last(self.up(self.down(x)))
