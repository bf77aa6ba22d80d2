"""The detector of traffic elements: the front image to boxes with attributes.

- Deformable DETR (arXiv:2010.04159) with its refinement of boxes layer by layer (section 4.2), and as an option its
  two stages: every place of the feature maps proposes a box, the likeliest are where the queries begin.
- Contents of the queries are learned, as in DINO (arXiv:2203.03605, section 3.4).
"""

import torch
from torch import nn

from jettison.domains.perception.layers.backbone import STRIDES, Backbone
from jettison.domains.perception.layers.decoder import DecoderLayer
from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.pyramid import Pyramid
from jettison.domains.perception.layers.steps import DeformableAttention, FeedForward, perceptron
from jettison.domains.perception.models.road_topoformer.surround import RARE, as_map, grid_middles, inverse_sigmoid
from jettison.domains.perception.scenes import ATTRIBUTES
from jettison.graph.own_models import OwnConfig

Tensor = torch.Tensor
CELLS = 2.0  # side of a proposed box at the beginning, in cells of its map
SMALL = 0.1  # side of a learned box at the beginning, as a share of the image


class EncoderLayer(nn.Module):
    """A layer of the encoder: places look around themselves on all maps, then a network for every place."""

    def __init__(self, config: OwnConfig, levels: int):
        super().__init__()
        self.around = DeformableAttention(config.dimension, config.heads, levels, config.points)
        self.mlp = FeedForward(config.dimension, config.hidden)

    def forward(self, maps: list[Tensor], middles: Tensor, positions: Tensor) -> list[Tensor]:
        """Return the maps after the layer. middles: (places, 2), positions: (places, width), of all maps in a row."""
        x = tokens_of(maps)
        x = self.mlp(self.around(x, maps, middles[None].expand(x.shape[0], -1, -1), positions[None]))
        sides = [tuple(part.shape[-2:]) for part in maps]
        parts = x.split([rows * columns for rows, columns in sides], 1)
        return [as_map(part, side) for part, side in zip(parts, sides, strict=True)]


def tokens_of(maps: list[Tensor]) -> Tensor:
    """Return the places of all maps in a row, (batch, places, width)."""
    return torch.cat([part.flatten(2).transpose(1, 2) for part in maps], 1)


class ElementDetector(nn.Module):
    """The front image to traffic elements, by layer. backbone: None if it is given feature maps of another one."""

    def __init__(self, config: OwnConfig, backbone: Backbone | None, channels: tuple[int, ...]):
        super().__init__()
        width, count = config.dimension, config.elements
        self.first = STRIDES.index(config.element_stride)
        levels = len(STRIDES) - self.first
        self.backbone = backbone
        self.pyramid = Pyramid(channels[self.first :], width, config.smooth)
        self.encoder = nn.ModuleList(EncoderLayer(config, levels) for _ in range(config.element_encoder))
        self.queries = nn.Parameter(0.1 * torch.randn(count, width))
        self.place = perceptron(width, width, width)
        self.proposals = config.proposals
        if config.proposals:
            self.propose, self.proposed = perceptron(width, width, 4, 3), nn.Linear(width, len(ATTRIBUTES))
        else:
            self.starts = nn.Parameter(torch.cat([torch.randn(count, 2), torch.full((count, 2), SMALL).logit()], 1))
        self.decoder = nn.ModuleList(
            DecoderLayer(width, config.heads, config.hidden, levels=levels, points=config.points)
            for _ in range(config.element_decoder)
        )
        self.boxes = nn.ModuleList(perceptron(width, width, 4, 3) for _ in self.decoder)
        self.scores = nn.ModuleList(nn.Linear(width, len(ATTRIBUTES)) for _ in self.decoder)
        boxes, scores = [*self.boxes], [*self.scores]
        if config.proposals:
            boxes.append(self.propose)
            scores.append(self.proposed)
        for box, score in zip(boxes, scores, strict=True):
            nn.init.zeros_(box[-1].weight)
            nn.init.zeros_(box[-1].bias)
            nn.init.constant_(score.bias, 2 * RARE)

    def forward(self, front: Tensor, backbone: Backbone) -> dict[str, list[Tensor]]:
        """Return what every layer of the decoder predicts.

        front: (batch, 3, height, width) from 0 to 1. backbone: the detector's own, or a shared one.
        Returns features (batch, elements, width); scores (batch, elements, attributes), logits; boxes (batch, elements,
        4), middle and sides as shares of the image's. With proposals, lists ``proposed_scores`` and ``proposed_boxes``
        of one tensor each: of all places.
        """
        maps = self.pyramid(backbone(front)[self.first :])
        middles, sizes = _places(maps)
        for layer in self.encoder:
            maps = layer(maps, middles, sine_encoding(middles, self.queries.shape[-1]))
        x = self.queries.expand(front.shape[0], -1, -1)
        made: dict[str, list[Tensor]] = {"features": [], "scores": [], "boxes": []}
        if self.proposals:
            every = tokens_of(maps)
            scores = self.proposed(every)
            boxes = (inverse_sigmoid(torch.cat([middles, sizes], -1)) + self.propose(every)).sigmoid()
            made |= {"proposed_scores": [scores], "proposed_boxes": [boxes]}
            likely = scores.amax(-1).topk(self.queries.shape[0], 1).indices
            box = boxes.gather(1, likely[..., None].expand(-1, -1, 4)).detach()
        else:
            box = self.starts.sigmoid().expand(front.shape[0], -1, -1)
        for layer, move, score in zip(self.decoder, self.boxes, self.scores, strict=True):
            x = layer(x, maps, self.place(sine_encoding(box, x.shape[-1])), references=box)
            box = (inverse_sigmoid(box) + move(x)).sigmoid()
            for name, value in (("features", x), ("scores", score(x)), ("boxes", box)):
                made[name].append(value)
            box = box.detach()
        return made


def _places(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the middles of all places of maps, (places, 2), and the sides of boxes there, (places, 2), as shares."""
    middles, sizes = [], []
    for part in maps:
        rows, columns = part.shape[-2:]
        middles.append(grid_middles(rows, columns).to(part))
        sizes.append(torch.tensor([CELLS / columns, CELLS / rows]).to(part).clamp(max=0.9).expand(rows * columns, 2))
    return torch.cat(middles), torch.cat(sizes)
