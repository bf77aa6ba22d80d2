"""A baseline: up to four straight lanes, regressed from the image of the front camera by a small CNN.

- Each of four slots predicts one line: presence, intercept and slope, and the rows in which the line begins and ends.
  Two slots are for lanes on the left of the middle, two for lanes on the right, the nearest lane first, as in SCNN
  (arXiv:1712.06080). All of it is our own simple design, to have something that other models must beat.
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
    """The fields of config.json. height, width: of the images that the network sees. channels: of its blocks."""

    height: SIDE = 80
    width: SIDE = 200
    channels: Annotated[list[WIDTH], Field(min_length=1, max_length=8)] = Field(default=[16, 32, 64, 96])


class Block(nn.Module):
    """A convolution that halves the sides of its input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, inputs, height, width). Returns (batch, outputs, height / 2, width / 2), rounded up."""
        return functional.relu(self.norm(self.conv(x)))


class LaneRegressor(OwnModel):
    """The network: (batch, 3, height, width) pixels from 0 to 1 to (batch, 4, 5) numbers."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        self.inputs = {"pixels": (3, config.height, config.width)}
        self.outputs = {"lines": (SLOTS, NUMBERS)}
        widths, height, width = [3, *config.channels], config.height, config.width
        self.blocks = nn.ModuleList(Block(*pair) for pair in pairwise(widths))
        for _ in self.blocks:
            height, width = -(-height // 2), -(-width // 2)
        self.head = nn.Linear(widths[-1] * height * width, SLOTS * NUMBERS)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def compute(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``lines``; numbers: logit of presence, intercept and slope of the line, top and bottom row."""
        x = 2 * pixels - 1
        for block in self.blocks:
            x = block(x)  # (batch, channels, height / 2^n, width / 2^n)
        raw = self.head(x.flatten(1)).unflatten(1, (SLOTS, NUMBERS))
        presence, intercept, slope, top, bottom = raw.unbind(-1)
        return {
            "lines": torch.stack(
                [presence, 0.5 + intercept, STEEP * torch.tanh(slope), torch.sigmoid(top), torch.sigmoid(bottom)], -1
            )
        }


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
    guess = model.compute(pixels)["lines"]
    there = lines[..., 0]
    presence = functional.binary_cross_entropy_with_logits(guess[..., 0], there)
    rows = lines[..., 3:4] + (lines[..., 4:5] - lines[..., 3:4]) * torch.linspace(0, 1, ROWS, device=lines.device)
    apart = (_x(guess, rows) - _x(lines, rows)).abs().mean(-1) + 0.5 * (guess[..., 3:] - lines[..., 3:]).abs().mean(-1)
    return presence + 5 * (apart * there).sum() / there.sum().clamp(min=1)


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
