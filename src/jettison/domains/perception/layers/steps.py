"""The steps of a decoder layer: dense attention, deformable attention, and a network for every token.

- A step adds its result to its input. It normalizes the sum, or with ``before`` its input alone (pre-norm).
- Matrices are plain linears with the names that transformers uses, so that a row of families.yaml gives their roles.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.domains.perception.layers.sampling import deformable_sampling

Tensor = torch.Tensor
POINTS = 4  # that a head samples of every level


class Step(nn.Module):
    """A residual step with its normalization."""

    def __init__(self, width: int, before: bool = False):
        super().__init__()
        self.norm, self.before = nn.LayerNorm(width), before

    def add(self, x: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """Return norm(x + part(x)), or x + part(norm(x)) for pre-norm. x: (batch, tokens, width)."""
        return x + part(self.norm(x)) if self.before else self.norm(x + part(x))


class Attention(Step):
    """Multi-head attention to other tokens, or to the tokens themselves."""

    def __init__(self, width: int, heads: int, before: bool = False):
        super().__init__(width, before)
        check_heads(width, heads)
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        for matrix in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(matrix.weight)
            nn.init.zeros_(matrix.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return x after the step, (batch, tokens, width).

        memory: (batch, others, width), what is attended to; None for the tokens themselves.
        positions, memory_positions: added before the queries and the keys are computed, not to the values.
        mask: (tokens, others) or (batch, 1, tokens, others), true where a token may attend: to one at least.
        """

        def attend(x: Tensor) -> Tensor:
            values = x if memory is None else memory
            places = positions if memory is None else memory_positions
            queries = self.q_proj(x if positions is None else x + positions)
            keys = self.k_proj(values if places is None else values + places)
            parts = (self._split(part) for part in (queries, keys, self.v_proj(values)))
            result = functional.scaled_dot_product_attention(*parts, attn_mask=mask)  # (batch, heads, tokens, each)
            return self.o_proj(result.transpose(1, 2).flatten(2))

        return self.add(x, attend)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, width / heads)


class DeformableAttention(Step):
    """Attention of every token to a few places near its own, on feature maps of several levels.

    Source: arXiv:2010.04159, section 4.1: offsets begin as rays of growing length, one direction for each head.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int = POINTS, before: bool = False):
        super().__init__(width, before)
        check_heads(width, heads)
        self.shape = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        for matrix in (self.offsets, self.weights):
            nn.init.zeros_(matrix.weight)
            nn.init.zeros_(matrix.bias)
        for matrix in (self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(matrix.weight)
            nn.init.zeros_(matrix.bias)
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)  # (heads, 2)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        bias = rays[:, None, None] * torch.arange(1, points + 1).view(1, 1, -1, 1)  # (heads, 1, points, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(heads, levels, points, 2).flatten())

    def forward(self, x: Tensor, maps: Sequence[Tensor], references: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return x after the step, (batch, tokens, width).

        maps: of every level (batch, width, height, width of the map).
        references: (batch, tokens, 2), x and y of the tokens as shares of the map's sides, or (batch, tokens, 4), a box
            by middle, width and height. Offsets are in cells of each map, or in eighths of the box's sides.
        """

        def attend(x: Tensor) -> Tensor:
            queries = x if positions is None else x + positions
            heads, levels, points = self.shape
            offsets = self.offsets(queries).unflatten(-1, (heads, levels, points, 2))
            weights = self.weights(queries).unflatten(-1, (heads, levels * points)).softmax(-1)
            around = references[:, :, None, None, None]  # (batch, tokens, 1, 1, 1, 2 or 4)
            if references.shape[-1] == 4:
                places = around[..., :2] + offsets * around[..., 2:] / 8
            else:
                sides = torch.tensor([[part.shape[3], part.shape[2]] for part in maps], device=x.device, dtype=x.dtype)
                places = around + offsets / sides[:, None]
            values = [self._values(part) for part in maps]
            return self.o_proj(deformable_sampling(values, places, weights.unflatten(-1, (levels, points))))

        return self.add(x, attend)

    def _values(self, features: Tensor) -> Tensor:
        """Project a map (batch, width, height, width of the map), place by place."""
        tokens = self.v_proj(features.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(-1, tokens.shape[-1], features.shape[2], features.shape[3])


class FeedForward(Step):
    """A network of two matrices for every token."""

    def __init__(self, width: int, hidden: int, before: bool = False):
        super().__init__(width, before)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x after the step, (batch, tokens, width)."""
        return self.add(x, lambda x: self.fc2(functional.relu(self.fc1(x))))


def check_heads(width: int, heads: int) -> None:
    """Raise UsageError if the heads do not divide the width."""
    if heads < 1 or width % heads:
        raise UsageError(f"{heads} heads for the width {width}: a number that divides the width is needed")


def perceptron(inside: int, hidden: int, outside: int, layers: int = 2) -> nn.Sequential:
    """Build linears with ReLU between them. It maps (..., inside) to (..., outside)."""
    widths = [inside, *[hidden] * (layers - 1), outside]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
