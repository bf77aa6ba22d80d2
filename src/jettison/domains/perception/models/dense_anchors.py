"""A baseline for Sparse Laneformer: hundreds of fixed anchors, and non-maximum suppression.

- As in LaneATT (arXiv:2010.12035) anchors are straight lines that begin at the left, lower and right edge of the image
  in many directions. The features along an anchor are pooled, row by row, and say whether there is a lane, and how far
  it is from the anchor in every row. Many anchors predict a lane; of similar predictions the likeliest stays.
- Backbone, pyramid, tables of lanes, changes of images and the end of the training are those of Sparse Laneformer.
- Ours: no attention between the anchors, even directions instead of a choice by the data, and ends as two numbers.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from jettison.domains.perception.layers.lanes import (
    LaneFields,
    LaneNetwork,
    PerRow,
    Stride,
    augment,
    best_lanes,
    example,
    extents,
    inside,
    read,
    row_middles,
    targets,
)
from jettison.domains.perception.layers.losses import focal_loss, masked_l1
from jettison.domains.perception.layers.sampling import sample_map
from jettison.domains.perception.modelling import Prediction, Sample, Stage, Tensors
from jettison.graph.own_models import OwnConfig, OwnModel

__all__ = ["example", "read", "targets"]  # members of the protocol that are defined elsewhere
TASK = "lanes"
STAGES = (Stage("train", steps=4000, batch=16, rate=1e-3),)
NEAR, FAR = 15 / 640, 20 / 640  # mean distance of an anchor of a lane, and of one of none, as shares of the width
SAME = 50 / 640  # mean distance of predictions that mean one lane. The three are LaneATT's, with 640 columns
FOCAL, DISTANCE, ENDS = 10.0, 50.0, 0.2  # weights of the loss
NOWHERE = -9.0  # x of an anchor in rows where it is not
RARE = -4.0  # logit of a lane at the beginning
Number = Annotated[int, Field(ge=2, le=1000, description="a whole number from 2 to 1,000 is needed")]


class Config(LaneFields):
    """The fields of config.json beside those of ``LaneFields``.

    below, beside: numbers of points on the lower edge, and on each other edge, where anchors begin.
    directions: numbers of anchors that begin at a point.
    """

    stride: Stride = 8
    per_row: PerRow = 2
    below: Number = 40
    beside: Number = 12
    directions: Number = 15


def make_anchors(config: OwnConfig) -> torch.Tensor:
    """Return x of all anchors in every row of the table, (anchors, rows), as shares of the width.

    Above its point an anchor is a straight line; below it, it does not exist: x lies far outside. Anchors that have
    fewer than two rows in the image are left out.
    """
    y = row_middles(config.rows, torch.zeros(()))
    angles = (torch.arange(config.directions) + 0.5) * math.pi / config.directions
    below = [(x, 1.0) for x in ((torch.arange(config.below) + 0.5) / config.below).tolist()]
    heights = ((torch.arange(config.beside) + 0.5) / config.beside).tolist()
    beside = [(x, height) for x in (0.0, 1.0) for height in heights]
    points = torch.tensor(below + beside)[:, None, None]  # (points, 1, 1, 2)
    slope = (angles.cos() / angles.sin())[:, None] * config.height / config.width
    x = torch.where(y <= points[..., 1], points[..., 0] + slope * (points[..., 1] - y), NOWHERE)
    x = x.flatten(0, 1)  # (points·directions, rows)
    return x[inside(x).sum(-1) > 1]


class DenseAnchors(LaneNetwork):
    """The network: (batch, 3, height, width) pixels from 0 to 1 to ``lanes``, (batch, anchors, 3 + rows).

    The numbers of a lane: logit, upper and lower end, x in every row.
    """

    def __init__(self, config: OwnConfig):
        super().__init__(config)
        anchors = make_anchors(config)
        at = anchors.unflatten(-1, (-1, config.per_row)).mean(-1)  # in the rows of the features
        y = row_middles(at.shape[-1], at).expand_as(at)
        self.outputs = {"lanes": (len(anchors), 3 + config.rows)}
        self.head = nn.Linear(at.shape[-1] * config.dimension, 3 + config.rows)
        with torch.no_grad():
            self.head.weight[3:] = 0
            self.head.bias[3:] = 0
            self.head.bias[0] = RARE
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("points", torch.stack([at, y], -1), persistent=False)

    def compute(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``lanes``."""
        features = self.feature_maps(pixels)[self.level]
        places = self.points.expand(pixels.shape[0], -1, -1, -1)
        along = sample_map(features, places).permute(0, 2, 3, 1).flatten(2)  # (batch, anchors, rows·dimension)
        logit, ends, offsets = self.head(along).split([1, 2, self.anchors.shape[-1]], -1)
        return {"lanes": torch.cat([logit, ends.sigmoid(), self.anchors + offsets], -1)}


def build(config: OwnConfig) -> DenseAnchors:
    """Return the network with new weights."""
    return DenseAnchors(config)


def loss(model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> torch.Tensor:
    """Return the focal loss of all anchors that are near a lane or far from all, and the distances of the near ones."""
    pixels, table = inputs["pixels"], targets["lanes"]
    if model.training:
        pixels, table = augment(pixels, table)
    lanes = model.compute(pixels)["lanes"]
    positive, negative, nearest = assign(model.anchors, table)
    batch, own = positive.nonzero(as_tuple=True)
    true, made, count = table[batch, nearest[batch, own]], lanes[batch, own], max(1, len(own))
    common = inside(true) & (model.anchors[own] > NOWHERE)  # an anchor says nothing of the rows below its point
    decided = positive | negative
    likely = (focal_loss(lanes[..., 0], positive) * decided).sum()
    apart = masked_l1(made[:, 3:], true, common).sum()
    ends = table.shape[-1] * (made[:, 1:3] - extents(true))
    ends = functional.smooth_l1_loss(ends, torch.zeros_like(ends), reduction="sum")
    return (FOCAL * likely + DISTANCE * apart + ENDS * ends) / count


@torch.no_grad()
def assign(anchors: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which anchors mean a lane, which mean none, and the nearest lane, each (batch, anchors).

    anchors: (anchors, rows). table: (batch, lanes, rows), true lanes. The distance is the mean over the rows that both
    have. The nearest anchor of a lane always means it.
    """
    common = inside(anchors)[:, None] & inside(table)[:, None]  # (batch, anchors, lanes, rows)
    apart = masked_l1(anchors[:, None], table[:, None], common)
    apart = torch.where(common.sum(-1) > 1, apart, 9.0)  # (batch, anchors, lanes)
    distance, nearest = apart.min(-1)
    positive = distance < NEAR
    best = apart.argmin(1)  # (batch, lanes)
    batch, lane = inside(table).any(-1).nonzero(as_tuple=True)
    positive[batch, best[batch, lane]] = True
    nearest[batch, best[batch, lane]] = lane
    return positive, ~positive & (distance > FAR), nearest


def predict(config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
    """Return the likeliest lanes that are not the same, in pixels of the image."""
    table = outputs["lanes"]

    def same(one: int, other: int) -> bool:
        """Whether two predictions are near each other in the rows that both have."""
        pair = table[[one, other]]
        middles = row_middles(pair.shape[-1] - 3, pair)
        there = ((middles > pair[:, 1:2]) & (middles < pair[:, 2:3])).all(0)
        apart = (pair[0, 3:] - pair[1, 3:]).abs()
        return bool(there.any()) and float(apart[there].mean()) < SAME

    return Prediction(lanes=best_lanes(config, sample, table, config.confidence, same))
