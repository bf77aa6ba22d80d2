"""What Separated RoadTopoFormer reads of a frame, what it learns of it, and its outputs as a road."""

import numpy as np
import torch

from jettison.core.errors import UsageError
from jettison.domains.perception.images import front_view, view_pixels, view_size
from jettison.domains.perception.layers.losses import corners
from jettison.domains.perception.modelling import Prediction, Sample, Tensors
from jettison.domains.perception.models.road_topoformer.bezier import (
    curve_points,
    even_points,
    fit_curve,
    to_metres,
    to_shares,
)
from jettison.domains.perception.scenes import ATTRIBUTES, Camera, Centerline, Road, TrafficElement, View
from jettison.graph.own_models import OwnConfig

SLOTS = {"lanes": 80, "elements": 40}  # instances of a frame that are learned, at most
DENSE = 100  # points of a curve, before some at even steps are taken
LEAST = 0.05  # confidence of a predicted instance
SHORTEST = 1e-3  # side of a predicted box in pixels


def read(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return the inputs of a sample.

    ``images`` (cameras, 3, height, width) from 0 to 1; black where the frame has fewer cameras. ``projection``
    (cameras, 3, 4), see ``surround.project``. ``front`` (3, front_height, front_width).
    Raises UsageError for a frame with more cameras than the config, without a front camera, or without calibration.
    """
    views = sample.frame.views
    if len(views) > config.cameras:
        raise UsageError(
            f"frame {sample.frame.name} has {len(views)} cameras: this model has cameras = {config.cameras}"
        )
    images = torch.zeros(config.cameras, 3, config.height, config.width)
    projection = torch.zeros(config.cameras, 3, 4)
    for place, (name, view) in enumerate(views.items()):
        if view.image is None or view.camera is None:
            what = "image" if view.image is None else "calibration"
            raise UsageError(f"frame {sample.frame.name} has no {what} of camera {name}: images and calibrations of "
                             "all cameras are needed")  # fmt: skip
        images[place] = view_pixels(view, config.height, config.width)
        projection[place] = torch.from_numpy(camera_projection(view.camera))
    front = view_pixels(front_view(sample.frame), config.front_height, config.front_width)
    return {"images": images, "projection": projection, "front": front}


def camera_projection(camera: Camera) -> np.ndarray:
    """Return the matrix (3, 4) that maps homogeneous points of the ego frame to (x·z, y·z, z) of a camera.

    x and y are shares of the image's sides, z metres ahead of the camera.
    """
    inside = np.array([[1 / camera.width, 0, 0.5 / camera.width], [0, 1 / camera.height, 0.5 / camera.height],
                       [0, 0, 1]])  # (0, 0) is the middle of the first pixel  # fmt: skip
    return inside @ camera.intrinsics @ np.linalg.inv(camera.camera_to_ego)[:3]


def targets(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return what is learned of a sample: instances in slots, and which slots are taken.

    ``curves`` (80, controls, 3), shares of the view; ``lane_there`` (80,); ``boxes`` (40, 4), middle and sides as
    shares of the front image; ``attributes`` (40,); ``element_there`` (40,); ``lane_lane`` (80, 80) and
    ``lane_element`` (80, 40), 1 for an edge. Of more lanes than slots the longest stay, of more elements the largest.
    Raises UsageError for a frame without labels of its road.
    """
    road = sample.frame.road
    if road is None:
        raise UsageError(f"frame {sample.frame.name} has no labels of its road: a split with labels is needed to train")
    size = np.array(view_size(front_view(sample.frame))[::-1])
    length = lambda lane: float(np.linalg.norm(np.diff(lane.points, axis=0), axis=1).sum())
    lanes = _first([length(lane) for lane in road.lanes], SLOTS["lanes"])
    elements = _first([float(np.prod(element.box[1] - element.box[0])) for element in road.elements], SLOTS["elements"])
    table = {
        "curves": torch.zeros(SLOTS["lanes"], config.controls, 3),
        "lane_there": torch.zeros(SLOTS["lanes"], dtype=torch.bool),
        "boxes": torch.zeros(SLOTS["elements"], 4),
        "attributes": torch.zeros(SLOTS["elements"], dtype=torch.long),
        "element_there": torch.zeros(SLOTS["elements"], dtype=torch.bool),
        "lane_lane": torch.zeros(SLOTS["lanes"], SLOTS["lanes"]),
        "lane_element": torch.zeros(SLOTS["lanes"], SLOTS["elements"]),
    }
    table["lane_there"][: len(lanes)] = True
    table["element_there"][: len(elements)] = True
    for place, number in enumerate(lanes):
        table["curves"][place] = to_shares(fit_curve(road.lanes[number].points, config.controls))
    for place, number in enumerate(elements):
        box = (road.elements[number].box + 0.5) / size
        table["boxes"][place] = torch.from_numpy(np.concatenate([box.mean(0), box[1] - box[0]]))
        table["attributes"][place] = road.elements[number].attribute
    for name, edges, columns in (("lane_lane", road.lane_lane, lanes), ("lane_element", road.lane_element, elements)):
        part = torch.from_numpy(edges[np.ix_(lanes, columns)])
        table[name][: part.shape[0], : part.shape[1]] = (part > 0).float()
    return table


def _first(sizes: list[float], count: int) -> list[int]:
    """Return the numbers of the ``count`` largest sizes, in their order; all if there are fewer."""
    return sorted(sorted(range(len(sizes)), key=lambda number: -sizes[number])[:count])


def predict(config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
    """Return the road of a sample: lanes in metres, elements in pixels of its front image, and edges.

    Lanes are points at even steps, as labels are: the score's distance depends on how dense they are. Instances less
    likely than 0.05 are left out. An element has its likeliest attribute.
    """
    view = front_view(sample.frame)
    confidences = outputs["lanes"][:, 0].sigmoid()
    lanes = [int(number) for number in confidences.argsort(descending=True) if confidences[number] >= LEAST]
    curves = outputs["lanes"][:, 1:].unflatten(-1, (config.controls, 3)).double()
    points = curve_points(to_metres(curves), DENSE).numpy()
    likely, attributes = outputs["elements"][:, : len(ATTRIBUTES)].sigmoid().max(-1)
    boxes = _boxes(outputs["elements"][:, len(ATTRIBUTES) :], view)
    elements = [int(number) for number in likely.argsort(descending=True)
                if likely[number] >= LEAST and (np.diff(boxes[number], axis=0) > SHORTEST).all()]  # fmt: skip
    edges = {name: outputs[name].sigmoid().double().numpy() for name in ("lane_lane", "lane_element")}
    return Prediction(
        road=Road(
            [Centerline(place, even_points(points[number], config.curve_points), float(confidences[number]))
             for place, number in enumerate(lanes)],
            [TrafficElement(place, boxes[number], int(attributes[number]), float(likely[number]))
             for place, number in enumerate(elements)],
            edges["lane_lane"][np.ix_(lanes, lanes)],
            edges["lane_element"][np.ix_(lanes, elements)],
        )
    )  # fmt: skip


def _boxes(boxes: torch.Tensor, view: View) -> np.ndarray:
    """Return boxes as corners in pixels of an image, cut at its edges, (n, 2, 2). boxes: (n, 4), shares."""
    height, width = view_size(view)
    shares = corners(boxes.double()).clamp(0, 1).unflatten(-1, (2, 2)).numpy()
    return shares * (width, height) - 0.5
