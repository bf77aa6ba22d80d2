"""The network of Separated RoadTopoFormer: two detectors, and the heads that relate their instances."""

import torch

from jettison.domains.perception.layers.backbone import build_backbone
from jettison.domains.perception.models.road_topoformer.elements import ElementDetector
from jettison.domains.perception.models.road_topoformer.relations import Relations
from jettison.domains.perception.models.road_topoformer.surround import LaneDetector
from jettison.domains.perception.scenes import ATTRIBUTES
from jettison.graph.own_models import OwnConfig, OwnModel

Tensor = torch.Tensor


class RoadTopoFormer(OwnModel):
    """The network. Inputs of a sample, see ``reading``: ``images`` and ``projection`` of the cameras, ``front``.

    Outputs: ``lanes`` (lanes, 1 + 3·controls), logit and control points as shares of the view; ``elements`` (elements,
    13 + 4), logits of the attributes and box by middle and sides as shares of the front image; ``lane_lane`` (lanes,
    lanes) and ``lane_element`` (lanes, elements), logits.
    """

    def __init__(self, config: OwnConfig):
        super().__init__()
        body = lambda: build_backbone(config.backbone, config.widths, config.depths)
        self.inputs = {
            "images": (config.cameras, 3, config.height, config.width),
            "projection": (config.cameras, 3, 4),
            "front": (3, config.front_height, config.front_width),
        }
        self.outputs = {
            "lanes": (config.lanes, 1 + 3 * config.controls),
            "elements": (config.elements, len(ATTRIBUTES) + 4),
            "lane_lane": (config.lanes, config.lanes),
            "lane_element": (config.lanes, config.elements),
        }
        self.lanes = LaneDetector(config, body())
        self.elements = ElementDetector(config, None if config.shared else body(), self.lanes.backbone.channels)
        self.relations = Relations(config)

    def compute(self, images: Tensor, projection: Tensor, front: Tensor) -> dict[str, Tensor]:
        """Return the outputs, (batch, ...) by name."""
        lanes, elements = self.find_lanes(images, projection), self.find_elements(front)
        lane_lane, lane_element = self.relations(instances(lanes, elements))
        scores, curves = lanes["scores"][-1], lanes["curves"][-1]
        return {
            "lanes": torch.cat([scores[..., None], curves.flatten(2)], -1),
            "elements": torch.cat([elements["scores"][-1], elements["boxes"][-1]], -1),
            "lane_lane": lane_lane,
            "lane_element": lane_element,
        }

    def find_lanes(self, images: Tensor, projection: Tensor) -> dict[str, list[Tensor]]:
        """Return what every layer of the lane detector predicts."""
        return self.lanes(images, projection)

    def find_elements(self, front: Tensor) -> dict[str, list[Tensor]]:
        """Return what every layer of the detector of traffic elements predicts."""
        own = self.elements.backbone
        return self.elements(front, self.lanes.backbone if own is None else own)


def instances(lanes: dict[str, list[Tensor]], elements: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the instances of the last layers, as the relation heads and the matching read them."""
    names = {"features": "lane_features", "scores": "lane_scores", "curves": "curves"}
    own = {names[name]: lanes[name][-1] for name in names}
    others = {"features": "element_features", "scores": "element_scores", "boxes": "boxes"}
    return own | {others[name]: elements[name][-1] for name in others}
