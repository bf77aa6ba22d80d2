"""The network of Sparse Laneformer: lane and angle queries, two stages of layers, anchors that turn."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.lanes import Count, LaneFields, LaneNetwork, row_middles
from jettison.domains.perception.layers.steps import Attention, DeformableAttention, FeedForward, perceptron
from jettison.graph.own_models import OwnConfig

Tensor = torch.Tensor
FLATTEST = 0.05  # sine of the smallest angle of an anchor
RARE = -2.2  # logit of a lane at the beginning: one anchor in ten


class Config(LaneFields):
    """The fields of config.json beside those of ``LaneFields``.

    anchors: their number. heads, hidden: of the layers. perceiving, refining: numbers of layers of the two stages.
    points: that a head of the lane perceptual attention samples on every level.
    rotation: the row about which anchors turn, as a share of the height that the network sees, 0 at the top.
    hpa: attend along the row; else to the whole map. laca: let lane and angle queries attend to each other; else an
        anchor has the same angle in all images. lpa: refine by deformable attention; else without a look at the image.
    dynamic: turn anchors; else they stay vertical.
    """

    anchors: Count = 20
    heads: Count = 4
    hidden: Count = 128
    perceiving: Annotated[int, Field(ge=1, le=12, description="a whole number from 1 to 12 is needed")] = 2
    refining: Annotated[int, Field(ge=1, le=12, description="a whole number from 1 to 12 is needed")] = 2
    points: Annotated[int, Field(ge=1, le=32, description="a whole number from 1 to 32 is needed")] = 4
    rotation: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1 is needed")] = 0.6
    hpa: bool = True
    laca: bool = True
    lpa: bool = True
    dynamic: bool = True


def anchor_starts(count: int) -> Tensor:
    """Return x of the anchors at the row about which they turn, evenly spaced, (count,)."""
    return (torch.arange(count) + 0.5) / count


def anchor_lines(starts: Tensor, angles: Tensor, rows: int, rotation: float, ratio: float) -> Tensor:
    """Return x of anchors in the middles of rows, (..., anchors, rows), as shares of the width.

    starts: (anchors,), x at the row about which they turn. angles: (..., anchors) to the horizontal, from 0 to π; π/2
    is a vertical line. rotation: that row, as a share of the height. ratio: height / width of what the network sees.
    """
    slope = angles.cos() / angles.sin().clamp(min=FLATTEST) * ratio  # shares of the width per height
    return starts[:, None] + slope[..., None] * (rotation - row_middles(rows, angles))


def attend_rows(step: Attention, lanes: Tensor, features: Tensor, positions: Tensor, places: Tensor) -> Tensor:
    """Horizontal perceptual attention: the query of a row attends to the features of that row.

    lanes, positions: (batch, anchors, rows, width). features, places: (batch, rows, columns, width), places with a
    batch of 1 or more. Returns lanes after the step.
    """
    batch = lanes.shape[0]
    row = lambda x: x.transpose(1, 2).flatten(0, 1)  # (batch·rows, anchors, width)
    memory_places = places.expand(batch, -1, -1, -1).flatten(0, 1)
    made = step(row(lanes), features.flatten(0, 1), row(positions), memory_places)
    return made.unflatten(0, (-1, lanes.shape[2])).transpose(1, 2)


def attend_all(
    step: Attention, lanes: Tensor, features: Tensor, positions: Tensor, places: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Full attention: a query attends to the features of all rows. Arguments as ``attend_rows``.

    mask: (anchors·rows, rows·columns), true where a query may attend; None for everywhere.
    """
    flat = lambda x: x.flatten(1, 2)
    made = step(flat(lanes), flat(features), flat(positions), flat(places).expand(lanes.shape[0], -1, -1), mask)
    return made.unflatten(1, lanes.shape[1:3])


class LaneSelfAttention(nn.Module):
    """Self-attention of lane queries: among the anchors of a row, then along the rows of an anchor."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        self.among = Attention(config.dimension, config.heads)
        self.along = Attention(config.dimension, config.heads)

    def forward(self, lanes: Tensor, positions: Tensor) -> Tensor:
        """Return lanes (batch, anchors, rows, width) after the two steps. positions: as lanes."""
        anchors, rows = lanes.shape[1:3]
        turned, places = (x.transpose(1, 2).flatten(0, 1) for x in (lanes, positions))  # (batch·rows, anchors, width)
        lanes = self.among(turned, positions=places).unflatten(0, (-1, rows)).transpose(1, 2)
        return self.along(lanes.flatten(0, 1), positions=positions.flatten(0, 1)).unflatten(0, (-1, anchors))


class PerceivingLayer(nn.Module):
    """A layer of the first stage: HPA, self-attention, LACA, a network for every query."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        width, heads = config.dimension, config.heads
        self.rows_only, self.mixes = config.hpa, config.laca
        self.horizontal, self.self_attention = Attention(width, heads), LaneSelfAttention(config)
        if self.mixes:
            self.to_angles, self.to_lanes = Attention(width, heads), Attention(width, heads)
        self.mlp = FeedForward(width, config.hidden)

    def forward(
        self, lanes: Tensor, angles: Tensor, positions: Tensor, features: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return lanes (batch, anchors, rows, width) and angles (batch, anchors, width). Others: ``attend_rows``."""
        attend = attend_rows if self.rows_only else attend_all
        lanes = attend(self.horizontal, lanes, features, positions, places)
        lanes = self.self_attention(lanes, positions)
        if self.mixes:  # an angle query reads its lane; lane queries read all angle queries
            shape = lanes.shape[1:3]
            angles = self.to_angles(angles.flatten(0, 1)[:, None], lanes.flatten(0, 1))[:, 0].unflatten(
                0, (-1, shape[0])
            )
            lanes = self.to_lanes(lanes.flatten(1, 2), angles).unflatten(1, shape)
        return self.mlp(lanes), angles


class RefiningLayer(nn.Module):
    """A layer of the second stage: LPA at the points of the lanes, self-attention, a network for every query."""

    def __init__(self, config: OwnConfig, levels: int):
        super().__init__()
        self.perceptual = (
            DeformableAttention(config.dimension, config.heads, levels, config.points) if config.lpa else None
        )
        self.self_attention = LaneSelfAttention(config)
        self.mlp = FeedForward(config.dimension, config.hidden)

    def forward(self, lanes: Tensor, positions: Tensor, maps: list[Tensor], points: Tensor) -> Tensor:
        """Return lanes (batch, anchors, rows, width).

        positions: as lanes. maps: of the pyramid. points: (batch, anchors, rows, 2), x and y of the lanes, as shares.
        """
        if self.perceptual is not None:
            flat = [x.flatten(1, 2) for x in (lanes, points, positions)]
            lanes = self.perceptual(flat[0], maps, flat[1], flat[2]).unflatten(1, lanes.shape[1:3])
        return self.mlp(self.self_attention(lanes, positions))


class SparseLaneformer(LaneNetwork):
    """The network: (batch, 3, height, width) pixels from 0 to 1 to lanes and the angles of their anchors.

    ``lanes``: (batch, anchors, 3 + rows): logit, upper and lower end, x in every row. ``angles``: (batch, anchors).
    """

    def __init__(self, config: OwnConfig):
        super().__init__(config)
        width, count = config.dimension, config.anchors
        self.rows, self.per_row, self.rotation = config.cells[0], config.per_row, config.rotation
        self.ratio, self.dynamic = config.height / config.width, config.dynamic
        self.outputs = {"lanes": (count, 3 + config.rows), "angles": (count,)}
        self.lane_queries = nn.Parameter(0.1 * torch.randn(count, self.rows, width))
        self.angle_queries = nn.Parameter(0.1 * torch.randn(count, width))
        self.perceive = nn.ModuleList(PerceivingLayer(config) for _ in range(config.perceiving))
        self.refine = nn.ModuleList(RefiningLayer(config, self.levels) for _ in range(config.refining))
        self.turn = perceptron(width, width, 1)
        self.offsets = nn.ModuleList(perceptron(width, width, config.per_row) for _ in range(config.refining))
        self.ends, self.score = nn.Linear(width, 2), nn.Linear(width, 1)
        for last in (self.turn[-1], *(head[-1] for head in self.offsets)):  # anchors begin vertical, lanes as anchors
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.score.bias, RARE)
        self.register_buffer("starts", anchor_starts(count), persistent=False)

    def compute(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return ``lanes`` of the last layer, and ``angles``."""
        steps = self.steps(pixels)
        return {"lanes": steps["lanes"][-1], "angles": steps["angles"][-1]}

    def steps(self, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Return what every layer predicts.

        ``angles``, ``scores``: (batch, anchors), of every layer of the first stage. ``lanes``: (batch, anchors, 3 +
        rows) of every layer of the second.
        """
        maps, batch = self.feature_maps(pixels), pixels.shape[0]
        features = maps[self.level].permute(0, 2, 3, 1)  # (batch, rows, columns, width)
        places = self._places(features)
        lanes = self.lane_queries.expand(batch, -1, -1, -1)
        angles = self.angle_queries.expand(batch, -1, -1)
        steps: dict[str, list[Tensor]] = {"angles": [], "scores": [], "lanes": []}
        positions = self._encode(self.anchors(torch.full_like(angles[..., 0], math.pi / 2), self.rows))
        for layer in self.perceive:
            lanes, angles = layer(lanes, angles, positions, features, places)
            steps["angles"].append(self._angle(angles))
            steps["scores"].append(self.score(lanes.mean(2))[..., 0])
        x = self.anchors(steps["angles"][-1], self.rows * self.per_row)  # (batch, anchors, rows of the table)
        for layer, head in zip(self.refine, self.offsets, strict=True):
            x = x.detach()
            at = x.unflatten(-1, (self.rows, self.per_row)).mean(-1)  # of the lanes in the rows of the features
            positions = self._encode(at)
            lanes = layer(lanes, positions, maps, self._points(at))
            x = x + head(lanes).flatten(-2)
            summary = lanes.mean(2)
            top, bottom = self.ends(summary).sigmoid().unbind(-1)
            steps["lanes"].append(torch.cat([self.score(summary), top[..., None], bottom[..., None], x], -1))
        return steps

    def _angle(self, angles: Tensor) -> Tensor:
        """Return the angles of the anchors from 0 to π, (batch, anchors). angles: queries (batch, anchors, width)."""
        turn = self.turn(angles)[..., 0]
        return math.pi * (turn if self.dynamic else torch.zeros_like(turn)).sigmoid()

    def anchors(self, angles: Tensor, rows: int) -> Tensor:
        """Return ``anchor_lines`` of the network's anchors. angles: (batch, anchors)."""
        return anchor_lines(self.starts, angles, rows, self.rotation, self.ratio)

    def _points(self, x: Tensor) -> Tensor:
        """Return points (batch, anchors, rows, 2), x and y. x: (batch, anchors, rows)."""
        return torch.stack([x, row_middles(x.shape[-1], x).expand_as(x)], -1)

    def _encode(self, x: Tensor) -> Tensor:
        """Return encodings (batch, anchors, rows, width) of the points of lanes."""
        return sine_encoding(self._points(x), self.lane_queries.shape[-1])

    def _places(self, features: Tensor) -> Tensor:
        """Return encodings (1, rows, columns, width) of the cells of a map. features: (batch, rows, columns, width)."""
        x = row_middles(features.shape[2], features)
        return self._encode(x[None, :, None].expand(1, -1, features.shape[1])).transpose(1, 2)
