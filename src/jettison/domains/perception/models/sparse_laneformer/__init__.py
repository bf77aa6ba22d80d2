"""Sparse Laneformer: lanes from about 20 anchors that turn, without non-maximum suppression.

- Lane queries, one for every anchor and row of the features, and an angle query for every anchor. In the first stage
  lane queries look along their row (horizontal perceptual attention, HPA), and lane and angle queries at each other
  (lane-angle cross attention, LACA). Angle queries turn the anchors. In the second stage, lane queries sample the
  features near their lane (lane perceptual attention, LPA, deformable), and every layer moves the lane by offsets.
- Predictions are matched with true lanes one to one, so that none has to be suppressed.
- Source: arXiv:2404.07821. There is no official code: what its abstract does not say is our reconstruction. Ours too:
  one matching, of the last layer, serves all layers; a table of lanes has a whole number of rows per feature row (70
  for the paper's sizes, not 72); heads of scores and ends are shared by the layers.
- The defaults are small. The paper's configuration is ``PAPER``, with the depths of ResNet-34 or -18.
"""

import math
from typing import Any

import torch
from torch.nn import functional

from jettison.domains.perception.layers.lanes import (
    RADIUS,
    angles_of,
    augment,
    best_lanes,
    example,
    extents,
    image_lane,
    inside,
    read,
    targets,
)
from jettison.domains.perception.layers.losses import focal_cost, focal_loss, line_iou, masked_l1
from jettison.domains.perception.layers.matching import match
from jettison.domains.perception.modelling import Prediction, Sample, Stage, Tensors
from jettison.domains.perception.models.sparse_laneformer.network import (
    Config,
    SparseLaneformer,
    anchor_lines,
    anchor_starts,
)
from jettison.graph.own_models import OwnConfig, OwnModel

__all__ = ["Config", "example", "read", "targets"]  # members of the protocol that are defined elsewhere
TASK = "lanes"
STAGES = (Stage("train", steps=4000, batch=16, rate=1e-3),)
FOCAL, DISTANCE, OVERLAP, ANGLE, ENDS = 2.0, 5.0, 2.0, 1.0, 0.2  # weights of cost and loss
PAPER: dict[str, Any] = {
    "height": 320, "width": 800, "crop": 270 / 590, "widths": [64, 128, 256, 512], "depths": [3, 4, 6, 3],
    "dimension": 256, "stride": 32, "per_row": 7, "heads": 8, "hidden": 1024,
}  # fmt: skip


def build(config: OwnConfig) -> SparseLaneformer:
    """Return the network with new weights."""
    return SparseLaneformer(config)


def loss(model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> torch.Tensor:
    """Return the loss of all layers: focal, distance, line IoU, angle and ends of matched lanes, per true lane.

    While the model trains, images are changed at random, see ``layers.lanes.augment``.
    """
    pixels, table = inputs["pixels"], targets["lanes"]
    if model.training:
        pixels, table = augment(pixels, table)
    config, steps = model.config, model.steps(pixels)
    angles = angles_of(table, config.height, config.width)
    matched = match(*costs(steps["lanes"][-1], steps["angles"][-1], table, angles, config.dynamic))
    batch, slots = (matched >= 0).nonzero(as_tuple=True)
    own, true = matched[batch, slots], table[batch, slots]  # anchors of the matched lanes, and x of these lanes
    truth = torch.zeros_like(steps["scores"][0])
    truth[batch, own] = 1
    count = max(1, len(own))
    total = truth.new_zeros(())
    for scores, turned in zip(steps["scores"], steps["angles"], strict=True):
        total = total + FOCAL * focal_loss(scores, truth).sum()
        if config.dynamic:
            total = total + ANGLE * (turned[batch, own] - angles[batch, slots]).abs().sum()
    for lanes in steps["lanes"]:
        made = lanes[batch, own]
        total = total + FOCAL * focal_loss(lanes[..., 0], truth).sum()
        total = total + DISTANCE * masked_l1(made[:, 3:], true, inside(true)).sum()
        total = total + OVERLAP * (1 - line_iou(made[:, 3:], true, 1.0, RADIUS)).sum()
        ends = table.shape[-1] * (made[:, 1:3] - extents(true))  # in rows
        total = total + ENDS * functional.smooth_l1_loss(ends, torch.zeros_like(ends), reduction="sum")
    return total / count


@torch.no_grad()
def costs(
    lanes: torch.Tensor, turned: torch.Tensor, table: torch.Tensor, angles: torch.Tensor, dynamic: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the costs (batch, anchors, lanes) of matching predictions with true lanes, and which lanes there are.

    lanes: (batch, anchors, 3 + rows), turned: (batch, anchors), predictions. table: (batch, lanes, rows), angles:
    (batch, lanes), true ones. dynamic: whether angles count.
    """
    made, true = lanes[:, :, None, 3:], table[:, None]
    cost = FOCAL * focal_cost(lanes[..., 0])[..., None] + DISTANCE * masked_l1(made, true, inside(true))
    cost = cost + OVERLAP * (1 - line_iou(made, true, 1.0, RADIUS))
    if dynamic:
        cost = cost + ANGLE * (turned[:, :, None] - angles[:, None]).abs()
    return cost, inside(table).any(-1)


def predict(config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
    """Return the likeliest lanes, in pixels of the image, and the anchors before and after they turned."""
    lanes = best_lanes(config, sample, outputs["lanes"], config.confidence)
    turned = outputs["angles"].double()
    anchors = {}
    for name, angles in (("before they turned", torch.full_like(turned, math.pi / 2)), ("after they turned", turned)):
        lines = anchor_lines(
            anchor_starts(config.anchors), angles, config.rows, config.rotation, config.height / config.width
        )
        drawn = [image_lane(config, sample, line, (0.0, 1.0)) for line in lines]
        anchors[name] = [line for line in drawn if len(line.points) > 1]
    return Prediction(lanes=lanes, anchors=anchors)
