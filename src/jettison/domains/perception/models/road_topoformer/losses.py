"""The losses of Separated RoadTopoFormer. What is true is matched with what is predicted one to one, as in DETR.

Weights of traffic elements are twice those of the official baseline of OpenLane-V2 (1, 2.5 and 1), that of relations
is its 5. Our own: the distance of curves is measured in metres at points along them, not in shares at control points;
relations are learned among matched instances only, since only these are scored, with equal weights of edges and others
(alpha 0.5, not 0.25), so that 0.5 is the border that the score assumes.
"""

import torch

from jettison.domains.perception.layers.losses import corners, focal_cost, focal_loss, generalized_iou
from jettison.domains.perception.layers.matching import match
from jettison.domains.perception.modelling import Tensors
from jettison.domains.perception.models.road_topoformer.bezier import curve_points, to_metres

Tensor = torch.Tensor
SCORE, DISTANCE, EDGES, OVERLAP = 2.0, 0.5, 5.0, 2.0  # of scores, metres, L1 of boxes, generalized IoU
RELATION, EVEN = 5.0, 0.5  # weight and alpha of the relations
POINTS = 11  # of a curve


def lane_loss(made: dict[str, list[Tensor]], true: Tensors) -> Tensor:
    """Return the loss of the lanes of all layers, per true lane. made: see ``surround.LaneDetector``."""
    total, count = true["curves"].new_zeros(()), true["lane_there"].sum().clamp(min=1)
    for scores, curves in zip(made["scores"], made["curves"], strict=True):
        matched = match_lanes(scores, curves, true)
        batch, slots = (matched >= 0).nonzero(as_tuple=True)
        own = matched[batch, slots]
        truth = torch.zeros_like(scores).index_put((batch, own), scores.new_ones(()))
        total = total + SCORE * focal_loss(scores, truth).sum()
        apart = _points(curves[batch, own]) - _points(true["curves"][batch, slots])
        total = total + DISTANCE * apart.abs().sum(-1).mean(-1).sum()
    return total / count


@torch.no_grad()
def match_lanes(scores: Tensor, curves: Tensor, true: Tensors) -> Tensor:
    """Return the prediction of every true lane, (batch, slots), −1 for none, see ``layers.matching.match``.

    scores: (batch, lanes). curves: (batch, lanes, controls, 3).
    """
    flat = lambda points: _points(points).flatten(-2)  # (batch, lanes, points·3)
    apart = torch.cdist(flat(curves), flat(true["curves"]), p=1) / POINTS
    return match(SCORE * focal_cost(scores)[..., None] + DISTANCE * apart, true["lane_there"])


def _points(curves: Tensor) -> Tensor:
    """Return points along curves in metres, (..., 11, 3). curves: (..., controls, 3), shares of the view."""
    return curve_points(to_metres(curves), POINTS)


def element_loss(made: dict[str, list[Tensor]], true: Tensors) -> Tensor:
    """Return the loss of the elements of all layers and of the proposals, per true element.

    made: see ``elements.ElementDetector``.
    """
    total, count = true["boxes"].new_zeros(()), true["element_there"].sum().clamp(min=1)
    layers = [*zip(made["scores"], made["boxes"], strict=True)]
    layers += [*zip(made.get("proposed_scores", ()), made.get("proposed_boxes", ()), strict=True)]
    for scores, boxes in layers:
        matched = match_elements(scores, boxes, true)
        batch, slots = (matched >= 0).nonzero(as_tuple=True)
        own = matched[batch, slots]
        where = (batch, own, true["attributes"][batch, slots])
        truth = torch.zeros_like(scores).index_put(where, scores.new_ones(()))
        total = total + SCORE * focal_loss(scores, truth).sum()
        box, wanted = boxes[batch, own], true["boxes"][batch, slots]
        total = total + EDGES * (box - wanted).abs().sum()
        total = total + OVERLAP * (1 - generalized_iou(corners(box), corners(wanted))).sum()
    return total / count


@torch.no_grad()
def match_elements(scores: Tensor, boxes: Tensor, true: Tensors) -> Tensor:
    """Return the prediction of every true element, (batch, slots), −1 for none.

    scores: (batch, elements, attributes). boxes: (batch, elements, 4).
    """
    attributes = true["attributes"][:, None].expand(-1, scores.shape[1], -1)  # (batch, elements, slots)
    cost = SCORE * focal_cost(scores).gather(2, attributes) + EDGES * torch.cdist(boxes, true["boxes"], p=1)
    overlap = generalized_iou(corners(boxes)[:, :, None], corners(true["boxes"])[:, None])
    return match(cost - OVERLAP * overlap, true["element_there"])


def relation_loss(lane_lane: Tensor, lane_element: Tensor, instances: Tensors, true: Tensors) -> Tensor:
    """Return the focal loss of the edges among matched instances, per true edge.

    lane_lane: (batch, lanes, lanes), lane_element: (batch, lanes, elements), logits. instances: see
    ``network.instances``; their scores, curves and boxes say which are matched.
    """
    lanes = match_lanes(instances["lane_scores"], instances["curves"], true)
    elements = match_elements(instances["element_scores"], instances["boxes"], true)
    total = lane_lane.new_zeros(())
    for logits, columns, name in ((lane_lane, lanes, "lane_lane"), (lane_element, elements, "lane_element")):
        batch, row, column = ((lanes >= 0)[:, :, None] & (columns >= 0)[:, None]).nonzero(as_tuple=True)
        truth = true[name][batch, row, column]
        own = logits[batch, lanes[batch, row], columns[batch, column]]
        total = total + RELATION * focal_loss(own, truth, alpha=EVEN).sum() / truth.sum().clamp(min=1)
    return total


def brighten(images: Tensor, most: float) -> Tensor:
    """Change brightness and contrast of each sample at random, by the seed of torch. images: (batch, ..., h, w)."""
    shape = (len(images), *[1] * (images.dim() - 1))
    gain, shift = (most * (2 * torch.rand(shape) - 1).to(images) for _ in range(2))
    return (images * (1 + gain) + shift / 3).clamp(0, 1)
