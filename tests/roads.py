"""A tiny Separated RoadTopoFormer, worlds for it, and the outputs of one that knows what is true."""

import json

import torch

from jettison.domains.perception.modelling import find_model
from jettison.domains.perception.models.road_topoformer.reading import SLOTS
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.own_models import make_config

JUNCTIONS, SCENES = Order(seed=3, size=(64, 160), frames=1, place="junction"), 5
NAME, KIND = "road_topoformer", "jettison_road_topoformer"
SIZES = {
    "height": 32, "width": 80, "front_height": 64, "front_width": 160, "rows": 20, "columns": 10, "dimension": 16,
    "hidden": 32, "heads": 2, "widths": [8, 16, 16, 32], "lanes": 20, "elements": 8, "encoder": 1, "decoder": 2,
    "element_decoder": 1, "element_stride": 8, "steps": 2,
}  # fmt: skip


def changes(**others):
    """Return the fields of a tiny model as ``train`` takes them."""
    return [f"{name}={json.dumps(value)}" for name, value in (SIZES | others).items()]


def tiny(**others):
    """Return the module of the model and a tiny config."""
    return find_model(NAME), make_config(KIND, SIZES | others, "test")


def junctions(folder):
    """Render scenes with traffic lights, a frame each, for ``made_once``."""
    write_world(folder, JUNCTIONS, SCENES)


def batch_of(model, config, world, numbers=(0, 1, 2)):
    """Return inputs and targets of frames of the split ``train``."""
    samples = Samples(model, config, world, "train")
    return samples.inputs(numbers), samples.targets(numbers)


def perfect(targets):
    """Return the outputs of a network that knows the targets of a sample: as many queries as slots."""
    big = lambda there: torch.where(there, 9.0, -9.0)
    attributes = torch.full((SLOTS["elements"], 13), -9.0)
    attributes[torch.arange(SLOTS["elements"]), targets["attributes"]] = big(targets["element_there"])
    edges = {name: big(targets[name] > 0) for name in ("lane_lane", "lane_element")}
    lanes = torch.cat([big(targets["lane_there"])[:, None], targets["curves"].flatten(1)], 1)
    return {"lanes": lanes, "elements": torch.cat([attributes, targets["boxes"]], 1), **edges}
