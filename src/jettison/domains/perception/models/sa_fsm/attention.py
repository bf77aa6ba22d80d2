"""Attention between the cameras of a ring: to all of them, and to the two neighbours (NCA).

Source: arXiv:2407.10406 names global and neighbour attention; their order and the encodings are our reconstruction.
Without neighbours a block is that of SurroundDepth's cross-view transformer (CVT, arXiv:2204.03636).
"""

import math

import torch
from torch import nn
from torch.nn import functional

MASKED = -1e4  # added to the scores of cameras that are missing
WIDER = 4  # of the MLP


def sine_encoding(height: int, width: int, channels: int) -> torch.Tensor:
    """Return a 2-D sine encoding (height · width, channels); half of the channels for y, half for x."""
    parts = []
    rates = 10_000 ** -(torch.arange(math.ceil(channels / 4)) / max(1, channels / 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for place in (y, x):
        angles = place.reshape(-1, 1) * rates
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1)[:, :channels]


class Attention(nn.Module):
    """Attention with several heads, and projections of its own for queries, keys and values."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Return (n, queries, channels).

        queries: (n, queries, channels). keys, values: (n, keys, channels). bias: (n, keys), added to the scores.
        """
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, tokens, head_dim)
        q, k, v = split(self.q_proj(queries)), split(self.k_proj(keys)), split(self.v_proj(values))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias[:, None, None]
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two matrices with a GELU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, WIDER * channels), nn.Linear(WIDER * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., channels)."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """One block: attention to all cameras, attention to the neighbours, MLP; each is added to its input."""

    def __init__(self, channels: int, heads: int, neighbours: bool):
        super().__init__()
        self.norm_all, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.everywhere, self.mlp = Attention(channels, heads), Mlp(channels)
        if neighbours:
            self.norm_near, self.near = nn.LayerNorm(channels), Attention(channels, heads)
            self.yaw = nn.Linear(2, channels)  # of sine and cosine of the angle to the neighbour
        self.neighbours = neighbours

    def forward(
        self, x: torch.Tensor, place: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens of all cameras, (batch, views, tokens, channels), as ``x``.

        place: (views, tokens, channels), encodings of the place in the image, and of the camera.
        yaw: (batch, views) radians. present: (batch, views), 1 for cameras that are there, else 0.
        """
        views, tokens = x.shape[1:3]
        absent = (1 - present) * MASKED  # (batch, views)
        y = self.norm_all(x)
        at = (y + place).flatten(1, 2)  # (batch, views · tokens, channels)
        x = x + self.everywhere(at, at, y.flatten(1, 2), absent.repeat_interleave(tokens, 1)).view_as(x)
        if self.neighbours:
            x = x + self.beside(self.norm_near(x), place, yaw, present, absent)
        return x + self.mlp(self.norm_mlp(x))

    def beside(
        self, y: torch.Tensor, place: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor, absent: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention of every camera to the ones before and after it in the ring; 0 where both are absent."""
        tokens = y.shape[2]
        at, keys, values, bias, some = y + place, [], [], [], torch.zeros_like(present)
        for step in (1, -1):
            angle = turned(yaw, step) - yaw  # (batch, views)
            turn = self.yaw(torch.stack([angle.sin(), angle.cos()], -1))[:, :, None]
            keys.append(turned(at, step) + turn)
            values.append(turned(y, step))
            bias.append(turned(absent, step)[..., None].expand(-1, -1, tokens))
            some = torch.maximum(some, turned(present, step))
        stacked = (torch.cat(parts, 2).flatten(0, 1) for parts in (keys, values, bias))  # (batch · views, 2 · tokens..)
        made = self.near(at.flatten(0, 1), *stacked).view_as(y)
        return made * some[..., None, None]


def turned(x: torch.Tensor, step: int) -> torch.Tensor:
    """Return (batch, views, ...) with, in the place of each camera, the one before (1) or after it (−1)."""
    return torch.cat([x[:, -step:], x[:, :-step]], 1)


class CrossView(nn.Module):
    """Lets the feature maps of one level look at each other, on a coarser grid, and adds what they learned."""

    def __init__(
        self, channels: int, size: tuple[int, int], views: int, halvings: int, blocks: int, heads: int,
        neighbours: bool, view_embedding: bool,
    ):  # fmt: skip
        super().__init__()
        self.down = nn.Sequential(*(_separable(channels, 2) for _ in range(halvings)))
        self.blocks = nn.ModuleList(Block(channels, heads, neighbours) for _ in range(blocks))
        self.up = nn.ModuleList(_separable(channels, 1) for _ in range(halvings))
        self.register_buffer("sine", sine_encoding(*size, channels), persistent=False)
        self.view = nn.Parameter(0.02 * torch.randn(views, channels)) if view_embedding else None

    def forward(self, x: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return features (batch · views, channels, height, width), as ``x``. yaw, present: (batch, views)."""
        y = self.down(x)
        height, width = y.shape[-2:]
        place = self.sine.to(y.dtype)[None] + (0 if self.view is None else self.view[:, None])
        y = y.flatten(2).transpose(1, 2).unflatten(0, (-1, present.shape[1]))  # (batch, views, tokens, channels)
        for block in self.blocks:
            y = block(y, place, yaw, present)
        y = y.flatten(0, 1).transpose(1, 2).unflatten(2, (height, width))
        for layer in self.up:
            y = layer(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        return x + y


def _separable(channels: int, stride: int) -> nn.Sequential:
    """A depthwise convolution and one of 1 x 1 pixel."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
    return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1), nn.ReLU())
