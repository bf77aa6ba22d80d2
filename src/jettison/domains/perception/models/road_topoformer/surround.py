"""The lane detector: images of all cameras to a bird's-eye view, and from there to curves in space.

- Cells of the bird's-eye view are queries. Points above each are projected into the cameras by their calibration, and
  the queries sample the feature maps around them (BEVFormer's spatial cross-attention, arXiv:2203.17270, section 3.3,
  without its memory of earlier frames).
- A decoder as in DETR finds the lanes. Every layer moves the control points; the next one looks around them.
- Our own: lanes begin at learned curves, a layer samples in the box around its curves, not around one point of each.
"""

import torch
from torch import nn

from jettison.domains.perception.layers.backbone import STRIDES, Backbone
from jettison.domains.perception.layers.decoder import DecoderLayer
from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.pyramid import Pyramid
from jettison.domains.perception.layers.sampling import deformable_sampling
from jettison.domains.perception.layers.steps import DeformableAttention, FeedForward, perceptron
from jettison.domains.perception.models.road_topoformer.bezier import to_metres
from jettison.graph.own_models import OwnConfig

Tensor = torch.Tensor
NEAR = 0.1  # metres in front of a camera
RARE = -2.2  # logit of an instance at the beginning: one query in ten
NARROWEST = 0.1  # side of the box around a curve, as a share of the view


class ViewAttention(DeformableAttention):
    """Attention of cells to the images that see them: deformable, around the projections of points above the cell."""

    def __init__(self, width: int, heads: int, levels: int, points: int, heights: int):
        super().__init__(width, heads, levels, points * heights)
        self.heights = heights
        with torch.no_grad():  # every height has the same rays, of lengths from 1 to ``points``
            rays = self.offsets.bias.view(heads, levels, heights, points, 2)
            rays.copy_(rays[:, :, :1].clone().expand_as(rays))

    def forward(self, x: Tensor, maps: list[Tensor], places: Tensor, positions: Tensor) -> Tensor:
        """Return x after the step, (batch, cells, width).

        maps: of every level (batch·cameras, width, height, width of the map).
        places: (batch, cameras, cells, heights, 2), where points above the cells are in the images, as shares of the
            sides; outside 0 to 1 for those that a camera does not see.
        """
        seen = ((places >= 0) & (places <= 1)).all(-1)  # (batch, cameras, cells, heights)

        def attend(x: Tensor) -> Tensor:
            queries, cameras = x + positions, places.shape[1]
            heads, levels, points = self.shape
            every = (levels, self.heights, points // self.heights)
            offsets = self.offsets(queries).unflatten(-1, (heads, *every, 2))
            weights = self.weights(queries).unflatten(-1, (heads, levels * points)).softmax(-1).unflatten(-1, every)
            sides = torch.tensor([[part.shape[3], part.shape[2]] for part in maps], device=x.device, dtype=x.dtype)
            offsets = offsets / sides[:, None, None]  # (batch, cells, heads, levels, heights, points, 2)
            where = places[:, :, :, None, None, :, None] + offsets[:, None]
            share = weights[:, None] * seen[:, :, :, None, None, :, None].to(x.dtype)
            values = [self._values(part) for part in maps]
            made = deformable_sampling(values, where.flatten(5, 6).flatten(0, 1), share.flatten(5, 6).flatten(0, 1))
            made = made.unflatten(0, (-1, cameras)).sum(1)  # (batch, cells, width)
            count = seen.any(-1).sum(1).clamp(min=1).to(x.dtype)  # cameras that see a cell
            return self.o_proj(made / count[..., None])

        return self.add(x, attend)


class BirdsEyeLayer(nn.Module):
    """A layer of the encoder: cells look at their neighbours, then into the cameras, then a network for every cell."""

    def __init__(self, config: OwnConfig, levels: int):
        super().__init__()
        width, heads = config.dimension, config.heads
        self.around = DeformableAttention(width, heads, 1, config.points)
        self.views = ViewAttention(width, heads, levels, config.view_points, len(config.heights))
        self.mlp = FeedForward(width, config.hidden)
        self.sides = (config.rows, config.columns)

    def forward(self, x: Tensor, maps: list[Tensor], places: Tensor, positions: Tensor, cells: Tensor) -> Tensor:
        """Return x after the layer. cells: (1, cells, 2), middles of the cells. The others: see ``ViewAttention``."""
        view = as_map(x, self.sides)
        x = self.around(x, [view], cells.expand(x.shape[0], -1, -1), positions)
        return self.mlp(self.views(x, maps, places, positions))


def as_map(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Turn tokens (batch, rows·columns, width) into a map (batch, width, rows, columns)."""
    return x.transpose(1, 2).unflatten(-1, sides)


def project(points: Tensor, projection: Tensor) -> Tensor:
    """Project points of the ego frame into cameras.

    points: (n, 3), metres. projection: (batch, cameras, 3, 4), maps them to (x·z, y·z, z), x and y as shares of the
    image's sides; zeros for a camera that is not there.
    Returns (batch, cameras, n, 2); −1 for points that are not ahead of the camera.
    """
    seen = torch.einsum("bcij,nj->bcni", projection[..., :3], points) + projection[..., None, :, 3]
    ahead = seen[..., 2:] > NEAR
    return torch.where(ahead, seen[..., :2] / seen[..., 2:].clamp(min=NEAR), -1.0)


class LaneDetector(nn.Module):
    """Images and calibration of all cameras to lanes, by layer."""

    def __init__(self, config: OwnConfig, backbone: Backbone):
        super().__init__()
        width = config.dimension
        self.first, self.sides = STRIDES.index(config.lane_stride), (config.rows, config.columns)
        self.controls, self.levels = config.controls, min(config.lane_levels, len(STRIDES) - self.first)
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.channels[self.first :], width, config.smooth)
        self.cells = nn.Parameter(0.1 * torch.randn(config.rows * config.columns, width))
        self.encoder = nn.ModuleList(BirdsEyeLayer(config, self.levels) for _ in range(config.encoder))
        self.queries = nn.Parameter(0.1 * torch.randn(config.lanes, width))
        self.starts = nn.Parameter(torch.logit(_starts(config.lanes, config.controls)))
        self.place = perceptron(3 * config.controls, width, width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, config.heads, config.hidden, levels=1, points=config.points)
            for _ in range(config.decoder)
        )
        self.curves = nn.ModuleList(perceptron(width, width, 3 * config.controls, 3) for _ in self.decoder)
        self.scores = nn.ModuleList(nn.Linear(width, 1) for _ in self.decoder)
        for curve, score in zip(self.curves, self.scores, strict=True):
            nn.init.zeros_(curve[-1].weight)
            nn.init.zeros_(curve[-1].bias)
            nn.init.constant_(score.bias, RARE)
        places = grid_middles(*self.sides)
        ground = to_metres(torch.cat([places, torch.full_like(places[:, :1], 0.5)], -1))
        points = ground[:, None].repeat(1, len(config.heights), 1)  # (cells, heights, 3)
        points[..., 2] = torch.tensor(config.heights)
        self.register_buffer("middles", places, persistent=False)
        self.register_buffer("pillars", points.flatten(0, 1), persistent=False)

    def forward(self, images: Tensor, projection: Tensor) -> dict[str, list[Tensor]]:
        """Return what every layer of the decoder predicts.

        images: (batch, cameras, 3, height, width) from 0 to 1. projection: see ``project``.
        Returns features (batch, lanes, width); scores (batch, lanes), logits; curves (batch, lanes, controls, 3),
        control points as shares of the view, see ``bezier.to_shares``.
        """
        view = self.look_down(images, projection)
        x = self.queries.expand(images.shape[0], -1, -1)
        points = self.starts.sigmoid().expand(images.shape[0], -1, -1, -1)
        made: dict[str, list[Tensor]] = {"features": [], "scores": [], "curves": []}
        for layer, curve, score in zip(self.decoder, self.curves, self.scores, strict=True):
            x = layer(x, [view], self.place(4 * points.flatten(2) - 2), references=_box(points))
            points = (inverse_sigmoid(points) + curve(x).unflatten(-1, (self.controls, 3))).sigmoid()
            for name, value in (("features", x), ("scores", score(x)[..., 0]), ("curves", points)):
                made[name].append(value)
            points = points.detach()
        return made

    def look_down(self, images: Tensor, projection: Tensor) -> Tensor:
        """Return the bird's-eye view, (batch, width, rows, columns). Arguments: see ``forward``."""
        maps = self.pyramid(self.backbone(images.flatten(0, 1))[self.first :])[: self.levels]
        places = project(self.pillars, projection).unflatten(2, (self.cells.shape[0], -1))
        positions = sine_encoding(self.middles, self.cells.shape[-1])[None]
        x = self.cells.expand(images.shape[0], -1, -1)
        for layer in self.encoder:
            x = layer(x, maps, places, positions, self.middles[None])
        return as_map(x, self.sides)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Return the logit of shares, which are kept off 0 and 1."""
    x = x.clamp(1e-4, 1 - 1e-4)
    return torch.log(x / (1 - x))


def _box(points: Tensor) -> Tensor:
    """Return the boxes around curves by middle and sides, (batch, lanes, 4). points: (batch, lanes, controls, 3)."""
    low, high = points[..., :2].amin(2), points[..., :2].amax(2)
    return torch.cat([(low + high) / 2, (high - low).clamp(min=NARROWEST)], -1)


def grid_middles(rows: int, columns: int) -> Tensor:
    """Return the middles of the cells of a grid, (rows·columns, 2), x and y as shares."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _starts(lanes: int, controls: int) -> Tensor:
    """Return the curves from which training begins: straight, spread over the view, in all directions by turns.

    Returns (lanes, controls, 3), shares.
    """
    number = torch.arange(lanes)
    golden = 0.618034 * number
    middles = torch.stack([0.15 + 0.7 * ((number + 0.5) / lanes), 0.2 + 0.6 * (golden - golden.floor())], -1)
    turn = number * (torch.pi / 2)
    heading = torch.stack([0.2 * turn.sin(), 0.15 * turn.cos()], -1)  # half of a curve, as shares of the sides
    along = torch.linspace(-1, 1, controls)
    plane = middles[:, None] + along[:, None] * heading[:, None]
    return torch.cat([plane, torch.full_like(plane[..., :1], 0.5)], -1).clamp(0.02, 0.98)
