"""A baseline: up to four straight lanes, from the image of the front camera by a small CNN.

- Each of four slots predicts one line: presence, intercept and slope, and the rows in which the line begins and ends.
  Two slots are for lanes on the left of the middle, two for lanes on the right, the nearest lane first, as in SCNN
  (arXiv:1712.06080).
- In every row of its feature map the network says where the lane is, by a softmax over the columns as in
  arXiv:2004.11757, and how sure it is. The line is the weighted least-squares fit through the rows, which is
  differentiable (arXiv:1902.00293). The rest is our own simple design, to have something that other models must beat.
- Lines are x = intercept + slope · (y − REFERENCE), where x and y are shares of the image's width and height.
"""

from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.core.validation import Fields
from jettison.domains.perception.images import front_view, view_pixels, view_size
from jettison.domains.perception.modelling import Prediction, Sample, Stage, Tensors, noise
from jettison.domains.perception.scenes import ImageLane
from jettison.graph.own_models import OwnConfig, OwnModel

TASK = "lanes"
STAGES = (Stage("train", steps=400, batch=16, rate=3e-3),)
SLOTS = 4
NUMBERS = 5  # presence, intercept, slope, top and bottom row
REFERENCE = 0.75  # row at which a line has its intercept
STEEP = 8.0  # largest slope: widths of the image per height
ROWS = 12  # rows at which a line is compared with its target
POINTS = 24  # of a predicted lane
PRESENT = 0.5
SHIFT, GAIN = 0.08, 0.3  # of images in training: share of the width, share of the brightness
SIDE = Annotated[int, Field(ge=32, le=1024, description="a whole number from 32 to 1,024 is needed")]
WIDTH = Annotated[int, Field(ge=4, le=1024, description="a whole number from 4 to 1,024 is needed")]


class Config(Fields):
    """The fields of config.json. height, width: of the images that the network sees. channels: of its blocks.

    The first two blocks halve the sides of their inputs; the others see ever farther.
    """

    height: SIDE = 80
    width: SIDE = 200
    channels: Annotated[list[WIDTH], Field(min_length=3, max_length=8)] = Field(default=[16, 32, 48, 48, 48])


class Block(nn.Module):
    """A convolution of 3 x 3 pixels, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs, height / stride, width / stride), rounded up. x: (batch, inputs, height, width)."""
        return functional.relu(self.norm(self.conv(x)))


class LaneRegressor(OwnModel):
    """The network: (batch, 3, height, width) pixels from 0 to 1 to (batch, 4, 5) numbers."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        self.inputs = {"pixels": (3, config.height, config.width)}
        self.outputs = {"lines": (SLOTS, NUMBERS)}
        widths = [5, *config.channels]  # colours and the pixel's own place
        self.blocks = nn.ModuleList(
            Block(before, after, 2 if number < 2 else 1, 1 if number < 2 else 2 ** min(number - 1, 4))
            for number, (before, after) in enumerate(pairwise(widths))
        )
        self.maps = nn.Conv2d(widths[-1], 2 * SLOTS, 1)  # where the lane is in a row, and how sure that is
        self.head = nn.Linear(widths[-1], 3)  # presence, top and bottom row

    def compute(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``lines``; numbers: logit of presence, intercept and slope of the line, top and bottom row."""
        return {"lines": self.locate(pixels)[0]}

    def locate(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return lines (batch, 4, 5), x in every row of the feature map (batch, 4, rows), and y of the rows (rows,)."""
        down, across = (_middles(side, pixels) for side in pixels.shape[-2:])
        places = torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(pixels.shape[0], -1, -1, -1)
        x = 2 * torch.cat([pixels, places], 1) - 1  # (batch, 5, height, width)
        for block in self.blocks:
            x = block(x)  # (batch, channels, height / 4, width / 4)
        where, sure = self.maps(x).chunk(2, 1)  # (batch, 4, rows, columns)
        y, columns = (_middles(side, pixels) for side in x.shape[-2:])
        share = where.softmax(-1)
        at = (share * columns).sum(-1)  # (batch, 4, rows)
        intercept, slope = _fit(at, y - REFERENCE, sure.mean(-1).sigmoid() + 1e-3)
        seen = torch.einsum("bsrc,bfrc->bsf", share, x) / len(y)  # features along the lane, (batch, 4, channels)
        presence, top, bottom = self.head(seen).unbind(-1)
        lines = torch.stack([presence, intercept, slope.clamp(-STEEP, STEEP), top.sigmoid(), bottom.sigmoid()], -1)
        return lines, at, y


def _middles(count: int, like: torch.Tensor) -> torch.Tensor:
    """Return the middles of ``count`` equal parts of 0 to 1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def _fit(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit x = intercept + slope · y by weighted least squares. x, weight: (batch, 4, rows), y: (rows,)."""
    weight = weight / weight.sum(-1, keepdim=True)
    middle_x, middle_y = (weight * x).sum(-1), (weight * y).sum(-1)
    apart = y - middle_y[..., None]
    slope = (weight * apart * (x - middle_x[..., None])).sum(-1) / ((weight * apart**2).sum(-1) + 1e-4)
    return middle_x - slope * middle_y, slope


def build(config: OwnConfig) -> LaneRegressor:
    """Return the network with new weights."""
    return LaneRegressor(config)


def example(config: OwnConfig) -> dict[str, torch.Tensor]:
    """Return noise (1, 3, height, width)."""
    return noise({"pixels": (3, config.height, config.width)})


def read(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return the image of the front camera, (3, height, width) from 0 to 1."""
    return {"pixels": view_pixels(front_view(sample.frame), config.height, config.width)}


def targets(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return the lines of the four slots, (4, 5): presence, intercept, slope, top and bottom row.

    Raises UsageError for a frame without labels of lanes; a frame whose labels are no lanes has none present.
    """
    view = front_view(sample.frame)
    height, width = view_size(view)
    if view.lanes is None:
        raise UsageError(f"frame {sample.frame.name} has no labels of lanes: a split with labels is needed to train")
    lines = [line for lane in view.lanes if (line := _line(lane, height, width)) is not None]
    left = sorted((line for line in lines if line[1] < 0.5), key=lambda line: -line[1])
    right = sorted((line for line in lines if line[1] >= 0.5), key=lambda line: line[1])
    table = torch.zeros(SLOTS, NUMBERS)
    for first, side in ((0, left), (2, right)):
        for place, line in enumerate(side[:2]):
            table[first + place] = torch.tensor(line, dtype=torch.float32)
    return {"lines": table}


def _line(lane: ImageLane, height: int, width: int) -> list[float] | None:
    """Fit a line to the points of a lane in an image; None for a lane that lies outside, or is level."""
    x, y = ((lane.points + 0.5) / (width, height)).T
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    if inside.sum() < 2 or np.ptp(y[inside]) < 1 / height:
        return None
    x, y = x[inside], y[inside]
    slope, intercept = np.polyfit(y - REFERENCE, x, 1)
    return None if abs(slope) > STEEP else [1.0, float(intercept), float(slope), float(y.min()), float(y.max())]


def loss(model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> torch.Tensor:
    """Cross-entropy of presence, and the distances of present lines: of x at some rows, and of the ends.

    While the model trains, images are mirrored, shifted sidewards, and made brighter or darker at random.
    """
    pixels, lines = inputs["pixels"], targets["lines"]
    if model.training:
        pixels, lines = _augment(pixels, lines)
    guess, at, y = model.locate(pixels)
    there = lines[..., 0]
    presence = functional.binary_cross_entropy_with_logits(guess[..., 0], there)
    top, bottom = lines[..., 3:4], lines[..., 4:5]
    rows = top + (bottom - top) * torch.linspace(0, 1, ROWS, device=lines.device)
    apart = (_x(guess, rows) - _x(lines, rows)).abs().mean(-1) + 0.5 * (guess[..., 3:] - lines[..., 3:]).abs().mean(-1)
    within = ((y >= top) & (y <= bottom)).to(at.dtype)  # rows of the feature map, (batch, 4, rows)
    row = ((at - _x(lines, y.expand_as(at))).abs() * within).sum(-1) / within.sum(-1).clamp(min=1)
    return presence + 5 * ((apart + row) * there).sum() / there.sum().clamp(min=1)


def _x(lines: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return x of lines (batch, 4, 5) at rows (batch, 4, n): (batch, 4, n)."""
    return lines[..., 1:2] + lines[..., 2:3] * (rows - REFERENCE)


def _augment(pixels: torch.Tensor, lines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror, shift sidewards and brighten each image of a batch at random, with its lines."""
    batch, width = len(pixels), pixels.shape[-1]
    mirrored = torch.rand(batch) < 0.5
    shift = torch.randint(-int(SHIFT * width), int(SHIFT * width) + 1, (batch,))
    gain = 1 + GAIN * (2 * torch.rand(batch, 1, 1, 1) - 1)
    columns = torch.arange(width) - shift[:, None]  # where each pixel comes from, (batch, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns).clamp(0, width - 1).to(pixels.device)
    pixels = pixels.gather(-1, columns[:, None, None, :].expand_as(pixels)) * gain.to(pixels.device)
    flip = mirrored.to(lines.device)[:, None]
    moved = lines.clone()
    moved[..., 1] = torch.where(flip, 1 - lines[..., 1], lines[..., 1]) + (shift / width).to(lines.device)[:, None]
    moved[..., 2] = torch.where(flip, -lines[..., 2], lines[..., 2])
    mirror = moved[:, [2, 3, 0, 1]]  # left and right change places
    return pixels.clamp(0, 1), torch.where(flip[..., None], mirror, moved)


def predict(config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
    """Return the lanes of the slots whose presence is likelier than not, in pixels of the image."""
    height, width = view_size(front_view(sample.frame))
    lanes = []
    for line in outputs["lines"].double():
        confidence, top, bottom = float(line[0].sigmoid()), float(line[3]), float(line[4])
        if confidence > PRESENT and bottom > top:
            rows = torch.linspace(top, bottom, POINTS, dtype=torch.float64)
            x = _x(line[None], rows[None])[0]
            points = torch.stack([x * width, rows * height], -1).numpy() - 0.5
            lanes.append(ImageLane(points[(x >= 0) & (x <= 1)], confidence))
    return Prediction(lanes=[lane for lane in lanes if len(lane.points) > 1])
