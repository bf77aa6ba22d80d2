"""Attention between the cameras of a ring: to all of them, and to the two neighbours (NCA).

Source: arXiv:2407.10406 names global and neighbour attention; their order and the encodings are our reconstruction.
Without neighbours a block is that of SurroundDepth's cross-view transformer (CVT, arXiv:2204.03636).
"""

import torch
from torch import nn
from torch.nn import functional

from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.steps import Attention, FeedForward

WIDER = 4  # of the MLP


class Block(nn.Module):
    """One block: attention to all cameras, attention to the neighbours, MLP; each is added to its input."""

    def __init__(self, channels: int, heads: int, neighbours: bool):
        super().__init__()
        self.everywhere = Attention(channels, heads, before=True)
        if neighbours:
            self.near = Attention(channels, heads, before=True)
            self.yaw = nn.Linear(2, channels)  # of sine and cosine of the angle to the neighbour
        self.mlp = FeedForward(channels, WIDER * channels, before=True)
        self.neighbours = neighbours

    def forward(self, x: torch.Tensor, place: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the tokens of all cameras, (batch, views, tokens, channels), as ``x``.

        place: (views, tokens, channels), encodings of the place in the image, and of the camera.
        yaw: (batch, views) radians. present: (batch, views) bool, false for cameras that are missing.
        """
        tokens = x.shape[2]
        mask = present.repeat_interleave(tokens, 1)[:, None, None]  # (batch, 1, 1, views · tokens)
        x = self.everywhere(x.flatten(1, 2), positions=place.flatten(0, 1), mask=mask).view_as(x)
        if self.neighbours:
            x = self.beside(x, place, yaw, present)
        return self.mlp(x)

    def beside(self, x: torch.Tensor, place: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return x after every camera attended to the ones before and after it; as it was where both are missing."""
        tokens, y = x.shape[2], self.near.norm(x)
        place = place.expand_as(x)
        memory, places, masks = [], [], []
        for step in (1, -1):
            angle = turned(yaw, step) - yaw  # (batch, views)
            turn = self.yaw(torch.stack([angle.sin(), angle.cos()], -1))[:, :, None]  # (batch, views, 1, channels)
            memory.append(turned(y, step))
            places.append(turned(place, step) + turn)
            masks.append(turned(present, step)[..., None].expand(-1, -1, tokens))
        mask = torch.cat(masks, 2)  # (batch, views, 2 · tokens)
        some = mask.any(-1, keepdim=True)
        made = self.near(
            x.flatten(0, 1),
            torch.cat(memory, 2).flatten(0, 1),
            place.flatten(0, 1),
            torch.cat(places, 2).flatten(0, 1),
            (mask | ~some).flatten(0, 1)[:, None, None],
        )
        return torch.where(some[..., None], made.view_as(x), x)


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
        middles = [(torch.arange(side) + 0.5) / side for side in size]
        places = torch.stack(torch.meshgrid(*middles, indexing="ij"), -1).flatten(0, 1)  # (tokens, 2)
        self.register_buffer("sine", sine_encoding(places, channels), persistent=False)
        self.view = nn.Parameter(0.02 * torch.randn(views, channels)) if view_embedding else None

    def forward(self, x: torch.Tensor, yaw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return features (batch · views, channels, height, width), as ``x``. yaw, present: as for a ``Block``."""
        y = self.down(x)
        height, width = y.shape[-2:]
        place = self.sine.to(y.dtype).expand(present.shape[1], -1, -1)
        if self.view is not None:
            place = place + self.view[:, None]  # (views, tokens, channels)
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
