"""Lanes as tables: x in every row of an image. What networks of lanes read, learn and predict.

- A table is (..., rows) x as shares of the image's width, or outside 0 <= x < 1 where there is no lane. The rows are
  even; their middles are at ``row_middles``, as shares of the height of the part of the image that the network sees.
- The network does not see the upper part of the image, ``crop`` of its height.
- ``example``, ``read`` and ``targets`` are members of ``modelling.PerceptionModel`` that these networks share.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.core.validation import Fields
from jettison.domains.perception.images import front_view, view_pixels, view_size
from jettison.domains.perception.layers.backbone import STRIDES, build_backbone
from jettison.domains.perception.layers.pyramid import Pyramid
from jettison.domains.perception.modelling import Sample, noise
from jettison.domains.perception.scenes import ImageLane
from jettison.graph.own_models import OwnConfig, OwnModel

Tensor = torch.Tensor
SLOTS = 16  # lanes of an image that are learned, at most: the longest
RADIUS = 15 / 800  # of the line IoU, as a share of the image's width: CLRNet's
OUTSIDE = -1.0  # x where there is no lane
GAIN, SHIFT, STRETCH, SHEAR = 0.3, 0.1, 0.15, 0.3  # of images in training, at most
Count = Annotated[int, Field(ge=1, le=4096, description="a whole number from 1 to 4,096 is needed")]
Side = Annotated[int, Field(ge=32, le=2048, multiple_of=16, description="a multiple of 16 from 32 to 2,048 is needed")]
Stride = Annotated[Literal[4, 8, 16, 32], Field(description="4, 8, 16 or 32 is needed")]
PerRow = Annotated[int, Field(ge=1, le=16, description="a whole number from 1 to 16 is needed")]
Stages = Annotated[list[Count], Field(min_length=4, max_length=4, description="four whole numbers from 1 are needed")]


class LaneFields(Fields):
    """The fields of config.json that networks of lanes have in common.

    height, width: of what the network sees, in pixels. crop: the share of the image above it.
    backbone, widths, depths: see ``layers.backbone``.
    dimension: channels of features and queries.
    stride: of the map whose rows are the rows of the features. per_row: rows of a table in each of them.
    finest: stride of the finest map of the pyramid. smooth: whether the pyramid has its 3x3 convolutions.
    most: lanes that are predicted, at most. confidence: of a predicted lane, at least.
    """

    height: Side = 96
    width: Side = 400
    crop: Annotated[float, Field(ge=0, le=0.9, description="a share from 0 to 0.9 is needed")] = 0.4
    backbone: str = "resnet"
    widths: Stages = Field(default=[16, 32, 64, 128])
    depths: Stages = Field(default=[1, 2, 2, 1])
    dimension: Annotated[int, Field(ge=8, le=1024, multiple_of=8, description="a multiple of 8 is needed")] = 64
    stride: Stride = 16
    finest: Stride = 8
    per_row: PerRow = 4
    smooth: bool = False
    most: Count = 4
    confidence: Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1 is needed")] = 0.4

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the map of the features."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def rows(self) -> int:
        """Rows of a table."""
        return self.cells[0] * self.per_row


class LaneNetwork(OwnModel):
    """Base of the networks of lanes: pixels to the maps of a pyramid.

    level: place of the map whose rows are the rows of the features. levels: number of maps.
    Raises UsageError if the features are finer than the finest map.
    """

    def __init__(self, config: OwnConfig):
        super().__init__()
        if config.stride < config.finest:
            raise UsageError(
                f"stride = {config.stride}: at least {config.finest} is needed, the stride of the finest map"
            )
        first = STRIDES.index(config.finest)
        self.level, self.levels = STRIDES.index(config.stride) - first, len(STRIDES) - first
        self.inputs = {"pixels": (3, config.height, config.width)}
        self.backbone = build_backbone(config.backbone, config.widths, config.depths)
        self.pyramid = Pyramid(self.backbone.channels[first:], config.dimension, config.smooth)

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return maps (batch, dimension, height / stride, width / stride), from fine to coarse."""
        return self.pyramid(self.backbone(pixels)[-self.levels :])


def row_middles(rows: int, like: Tensor) -> Tensor:
    """Return the middles of the rows as shares of the height, (rows,), with type and device of a tensor."""
    return (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows


def _middles(rows: int) -> np.ndarray:
    return (np.arange(rows) + 0.5) / rows


def example(config: OwnConfig) -> dict[str, Tensor]:
    """Return noise (1, 3, height, width)."""
    return noise({"pixels": (3, config.height, config.width)})


def read(config: OwnConfig, sample: Sample) -> dict[str, Tensor]:
    """Return the lower part of the image of the front camera, (3, height, width) from 0 to 1."""
    whole = round(config.height / (1 - config.crop))
    pixels = view_pixels(front_view(sample.frame), whole, config.width)[:, whole - config.height :]
    return {"pixels": pixels.contiguous()}


def targets(config: OwnConfig, sample: Sample) -> dict[str, Tensor]:
    """Return the lanes of a sample as a table (SLOTS, rows).

    Lanes that have fewer than two rows in the image are left out; of more than SLOTS the longest stay.
    Raises UsageError for a frame without labels of lanes.
    """
    view = front_view(sample.frame)
    if view.lanes is None:
        raise UsageError(f"frame {sample.frame.name} has no labels of lanes: a split with labels is needed to train")
    height, width = view_size(view)
    middles = config.crop + (1 - config.crop) * _middles(config.rows)
    table = torch.full((SLOTS, config.rows), OUTSIDE)
    rows = [row for lane in view.lanes if ((row := _row(lane, middles, height, width)) >= 0).sum() > 1]
    rows.sort(key=lambda row: -(row >= 0).sum())
    for place, row in enumerate(rows[:SLOTS]):
        table[place] = torch.from_numpy(row)
    return {"lanes": table}


def _row(lane: ImageLane, middles: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return x of a lane in every row, float32; OUTSIDE above and below its ends, and outside the image."""
    x, y = ((lane.points + 0.5) / (width, height)).T
    order = np.argsort(y, kind="stable")
    at = np.full(len(middles), OUTSIDE)
    if len(x) > 1:
        at = np.interp(middles, y[order], x[order], left=OUTSIDE, right=OUTSIDE)
    return np.where((at >= 0) & (at < 1), at, OUTSIDE).astype(np.float32)


def inside(table: Tensor) -> Tensor:
    """Return where a table has a lane, bool."""
    return (table >= 0) & (table < 1)


def extents(table: Tensor) -> Tensor:
    """Return upper and lower end of every lane (..., rows) as shares of the height, (..., 2); 0 and 0 for no lane."""
    rows = table.shape[-1]
    there, numbers = inside(table), torch.arange(rows, device=table.device)
    top = torch.where(there, numbers, rows).amin(-1).clamp(max=rows - 1)
    bottom = torch.where(there, numbers + 1, 0).amax(-1)
    return torch.where(there.any(-1)[..., None], torch.stack([top, bottom], -1) / rows, 0.0)


def angles_of(table: Tensor, height: int, width: int) -> Tensor:
    """Return the angle of every lane to the horizontal, from 0 to π, by least squares of x over y, (...).

    height, width: of what the network sees, in pixels. A vertical lane has π/2, one that goes up to the right less.
    """
    there = inside(table).to(table.dtype)
    count = there.sum(-1, keepdim=True).clamp(min=1)
    y = row_middles(table.shape[-1], table).expand_as(table)
    apart_x, apart_y = (value - (value * there).sum(-1, keepdim=True) / count for value in (table, y))
    slope = (there * apart_x * apart_y).sum(-1) / (there * apart_y**2).sum(-1).clamp(min=1e-6)  # shares per share
    return torch.atan2(torch.ones_like(slope), -slope * (width / height))


def augment(pixels: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, shift, stretch and shear each image of a batch sidewards, and change its brightness and contrast.

    pixels: (batch, 3, height, width). table: (batch, lanes, rows). Every row stays the row that it is, so x' is
    a·x + b + c·y about the middle. Randomness is that of torch.
    """
    batch = len(pixels)
    draw = lambda most: (most * (2 * torch.rand(batch) - 1)).to(pixels)
    side = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0).to(pixels)
    stretch, shift, shear = side * (1 + draw(STRETCH)), draw(SHIFT), draw(SHEAR)
    zero, one = torch.zeros_like(shift), torch.ones_like(shift)
    back = torch.stack([1 / stretch, -shear / stretch, -2 * shift / stretch, zero, one, zero], -1).view(batch, 2, 3)
    grid = functional.affine_grid(back, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, align_corners=False)
    gain, offset = (value.view(batch, 1, 1, 1) for value in (1 + draw(GAIN), draw(GAIN / 3)))
    y = row_middles(table.shape[-1], table) - 0.5
    at = stretch.view(-1, 1, 1) * (table - 0.5) + shift.view(-1, 1, 1) + shear.view(-1, 1, 1) * y + 0.5
    moved = torch.where(inside(table) & inside(at), at, OUTSIDE)
    moved = torch.where(inside(moved).sum(-1, keepdim=True) > 1, moved, OUTSIDE)  # a row alone is no lane
    return (pixels * gain + offset).clamp(0, 1), moved


def image_lane(
    config: OwnConfig, sample: Sample, x: Tensor, ends: Sequence[float], confidence: float = 1.0
) -> ImageLane:
    """Return a lane in pixels of the image of a sample, without the points outside the image.

    x: (rows,) shares of the width. ends: upper and lower end as shares of the height that the network sees; x is
    continued to them by straight lines.
    """
    height, width = view_size(front_view(sample.frame))
    middles, x = _middles(len(x)), x.double().numpy()
    top, bottom = max(0.0, ends[0]), min(1.0, ends[1])
    y = np.concatenate([[top], middles[(middles > top) & (middles < bottom)], [bottom]])
    at = np.interp(y, middles, x)
    for beyond, low, high in ((y < middles[0], 0, 1), (y > middles[-1], -2, -1)):
        if len(x) > 1:
            at[beyond] = x[low] + (x[high] - x[low]) * (y[beyond] - middles[low]) / (middles[high] - middles[low])
    points = np.stack([at * width, (config.crop + (1 - config.crop) * y) * height], 1) - 0.5
    return ImageLane(points[(at >= 0) & (at <= 1)], confidence)


def best_lanes(
    config: OwnConfig, sample: Sample, table: Tensor, threshold: float, same: Callable[[int, int], bool] | None = None
) -> list[ImageLane]:
    """Return the lanes of predictions that are likelier than a threshold, the likeliest first, at most ``most``.

    table: (predictions, 3 + rows): logit, upper and lower end, x in every row.
    same: says of two predictions whether they mean the same lane; the less likely one is then left out. None for none.
    """
    confidences, chosen = table[:, 0].sigmoid(), []
    lanes: list[ImageLane] = []
    for number in confidences.argsort(descending=True).tolist():
        confidence, top, bottom = float(confidences[number]), float(table[number, 1]), float(table[number, 2])
        if len(lanes) == config.most or confidence <= threshold:
            break
        if bottom <= top or (same is not None and any(same(number, other) for other in chosen)):
            continue
        lane = image_lane(config, sample, table[number, 3:], (top, bottom), confidence)
        if len(lane.points) > 1:
            lanes.append(lane)
            chosen.append(number)
    return lanes
