"""Hand tracking: heat maps by stacked hourglasses, a mesh by graph convolutions, depths of the joints from the mesh.

Source: Ge et al., 3D Hand Shape and Pose Estimation (arXiv:1903.00812), at half of its input size. The original mesh is
not part of this package: our vertices form a ring, whose graph convolutions cost the same.
"""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import Sum, conv, width_of

JOINTS, VERTICES = 21, 80


def residual(inside: int, outside: int) -> nn.Module:
    """Build a bottleneck residual block from ``inside`` to ``outside`` channels; it keeps the resolution."""
    path = nn.Sequential(
        conv(inside, outside // 2), conv(outside // 2, outside // 2, 3), nn.Conv2d(outside // 2, outside, 1)
    )
    return Sum(path, None if inside == outside else nn.Conv2d(inside, outside, 1))


class Hourglass(nn.Module):
    """An hourglass: process x at full and, recursively, at half resolution, and add both.

    depth: levels of halving. count: residual blocks per step.
    """

    def __init__(self, depth: int, channels: int, count: int = 2):
        super().__init__()
        blocks = lambda: nn.Sequential(*(residual(channels, channels) for _ in range(count)))
        self.skip, self.above, self.below = blocks(), blocks(), blocks()
        self.inner = Hourglass(depth - 1, channels, count) if depth > 1 else blocks()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        low = self.below(self.inner(self.above(nn.functional.max_pool2d(x, 2))))  # half of the resolution
        skip = self.skip(x)
        return skip + nn.functional.interpolate(low, size=skip.shape[-2:])


class RingConv(nn.Module):
    """A graph convolution on a ring of vertices, with the first three Chebyshev polynomials of its Laplacian."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.linear = nn.Linear(3 * inside, outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, vertices, inside) to (batch, vertices, outside)."""
        first = -(x.roll(1, 1) + x.roll(-1, 1)) / 2  # L x; L is the ring's Laplacian, its eigenvalues moved to [-1, 1]
        second = -(first.roll(1, 1) + first.roll(-1, 1)) - x  # 2 L (L x) - x, the recurrence of Chebyshev polynomials
        return self.linear(torch.cat([x, first, second], -1))


class HandGraph(nn.Module):
    """Hand tracking.

    Input (batch, 3, height, width). Outputs: heat maps (batch, 21, height/4, width/4), mesh (batch, 1280, 3), depths of
    the joints (batch, 20).
    """

    def __init__(self, width: float = 1.0, stacks: int = 2):
        super().__init__()
        c = width_of(width)
        wide = c(256)
        self.stem = nn.Sequential(conv(3, c(64), 7, 2), residual(c(64), c(128)), nn.MaxPool2d(2))
        self.widen = nn.Sequential(residual(c(128), c(128)), residual(c(128), wide))
        self.hourglasses = nn.ModuleList([Hourglass(4, wide) for _ in range(stacks)])
        self.features = nn.ModuleList([nn.Sequential(residual(wide, wide), conv(wide, wide)) for _ in range(stacks)])
        self.maps = nn.ModuleList([nn.Conv2d(wide, JOINTS, 1) for _ in range(stacks)])
        self.back = nn.ModuleList([nn.Conv2d(wide + JOINTS, wide, 1) for _ in range(stacks)])
        self.encoder = nn.Sequential(
            *(nn.Sequential(residual(wide, wide), nn.MaxPool2d(2)) for _ in range(3)), nn.AdaptiveAvgPool2d(4)
        )
        self.latent = nn.Sequential(nn.Linear(16 * wide, c(512)), nn.ReLU(), nn.Linear(c(512), VERTICES * 64))
        self.mesh = nn.ModuleList([RingConv(a, b) for a, b in ((64, 64), (64, 32), (32, 32), (32, 3))])
        self.pose = nn.ModuleList([RingConv(a, b) for a, b in ((3, 32), (32, 32), (32, 64), (64, 64))])
        self.depths = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, JOINTS - 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return heat maps, mesh and depths of the joints."""
        x = self.widen(self.stem(x))  # (batch, 256, height/4, width/4) at full width
        for hourglass, features, maps, back in zip(self.hourglasses, self.features, self.maps, self.back, strict=True):
            refined = features(hourglass(x))
            heat = maps(refined)
            x = x + back(torch.cat([refined, heat], 1))
        points = self.latent(self.encoder(x).flatten(1)).unflatten(1, (VERTICES, 64))  # (batch, vertices, 64)
        for level, layer in enumerate(self.mesh):
            points = layer(points)
            if level in (1, 2):
                points = points.relu().repeat_interleave(4, 1)  # 80 -> 320 -> 1280 vertices
        mesh = pose = points  # (batch, 1280, 3)
        for layer in self.pose:
            pose = layer(pose).relu()
        pooled = nn.functional.adaptive_max_pool1d(pose.transpose(1, 2), 8).flatten(1)  # (batch, 64 · 8)
        return heat, mesh, self.depths(pooled)
