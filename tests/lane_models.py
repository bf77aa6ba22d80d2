"""Tiny lane models, tables of straight lanes, and a frame with lanes, for tests."""

import math

import numpy as np
import torch
from PIL import Image

from jettison.domains.perception.layers.lanes import SLOTS
from jettison.domains.perception.modelling import Sample
from jettison.domains.perception.scenes import Frame, Scene, View
from jettison.graph.own_models import make_config, make_model

SPARSE, DENSE = "sparse_laneformer", "dense_anchors"
SMALL = {
    "height": 32, "width": 80, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "dimension": 16, "stride": 8,
    "per_row": 2,
}  # fmt: skip
OWN = {
    SPARSE: {"anchors": 6, "heads": 2, "hidden": 16, "perceiving": 1, "refining": 2, "points": 2},
    DENSE: {"below": 8, "beside": 3, "directions": 5},
}


def config_of(name, **changes):
    return make_config(f"jettison_{name}", SMALL | OWN[name] | changes, "test")


def network_of(name, **changes):
    torch.manual_seed(0)
    return make_model(config_of(name, **changes))


def straight(x, angle, height=32, width=80, rows=8, at=0.6):
    """Return x in every row of a line through (x, at) at an angle to the horizontal."""
    slope = -1 / math.tan(angle) * height / width
    return x + slope * ((torch.arange(rows) + 0.5) / rows - at)


def table_of(*lines):
    table = torch.full((1, SLOTS, 8), -1.0)
    for place, line in enumerate(lines):
        table[0, place] = torch.where((line >= 0) & (line < 1), line, -1.0)
    return table


def sample_of(folder, lanes, size=(96, 160)):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / "a.png")
    scene = Scene("s", [Frame("f", {"front": View(image=folder / "a.png", lanes=lanes)})])
    return Sample(scene, 0, scene.frames[0])
