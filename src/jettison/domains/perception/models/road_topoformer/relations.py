"""The relation heads: features of two instances to the probability that they belong together.

Two networks, one for each side, then a classifier of both beside each other, as in the official baseline of
OpenLane-V2. End points of lanes and boxes of elements are an option of the paper; how they are read is our own: an
encoding is added to the features, and of two lanes the classifier sees the gap between the end of the one and the start
of the other.
"""

import torch
from torch import nn

from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.steps import perceptron
from jettison.domains.perception.models.road_topoformer.bezier import REACH
from jettison.domains.perception.models.road_topoformer.surround import RARE
from jettison.graph.own_models import OwnConfig

Tensor = torch.Tensor
LAYERS = 3  # of each network
GAP = 10.0  # metres; farther gaps look alike


class RelationHead(nn.Module):
    """Pairs of instances to logits. extra: numbers that are known of a pair beside the features."""

    def __init__(self, width: int, extra: int = 0):
        super().__init__()
        half = width // 2
        self.from_side, self.to_side = perceptron(width, width, half, LAYERS), perceptron(width, width, half, LAYERS)
        self.classify = perceptron(2 * half + extra, width, 1, LAYERS)
        nn.init.constant_(self.classify[-1].bias, RARE)

    def forward(self, one: Tensor, other: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return logits (batch, n, m).

        one: (batch, n, width), other: (batch, m, width), features. extra: (batch, n, m, numbers).
        """
        one, other = self.from_side(one)[:, :, None], self.to_side(other)[:, None]
        rows, columns = one.shape[1], other.shape[2]
        pairs = [one.expand(-1, -1, columns, -1), other.expand(-1, rows, -1, -1)]
        return self.classify(torch.cat(pairs if extra is None else [*pairs, extra], -1))[..., 0]


class Relations(nn.Module):
    """Which lanes continue in which, and which traffic elements hold for which lanes."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        width, self.geometry = config.dimension, config.geometry
        self.lane_lane = RelationHead(width, 3 if config.geometry else 0)
        self.lane_element = RelationHead(width)
        if config.geometry:
            self.ends, self.boxes = perceptron(2 * width, width, width), perceptron(width, width, width)

    def forward(self, instances: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (batch, lanes, lanes) and (batch, lanes, elements).

        instances: ``lane_features`` (batch, lanes, width), ``curves`` (batch, lanes, controls, 3), ``element_features``
        (batch, elements, width), ``boxes`` (batch, elements, 4); see the two detectors.
        """
        lanes, elements, gaps = instances["lane_features"], instances["element_features"], None
        if self.geometry:
            curves, width = instances["curves"], lanes.shape[-1]
            starts, ends = curves[:, :, 0], curves[:, :, -1]
            places = torch.cat([sine_encoding(part[..., :2], width) for part in (starts, ends)], -1)
            lanes = lanes + self.ends(places)
            elements = elements + self.boxes(sine_encoding(instances["boxes"], width))
            reach = 2 * torch.tensor([REACH[1], REACH[0], REACH[2]], device=lanes.device, dtype=lanes.dtype)
            gaps = ((starts[:, None] - ends[:, :, None]) * reach / GAP).tanh()  # (batch, lanes, lanes, 3)
        return self.lane_lane(lanes, lanes, gaps), self.lane_element(lanes, elements)
