"""Separated RoadTopoFormer: centerlines, traffic elements, and which of them belong together.

- A lane detector looks down on the road from all cameras, see ``surround``; a detector of traffic elements looks at the
  front image, see ``elements``; relation heads read the features of their instances, see ``relations``.
- The paper's point is the schedule: detectors are trained apart, so that they do not disturb each other; the relation
  heads learn on frozen features; a short finetuning of all follows. ``schedule=joint`` is the baseline. Every part is
  trained as many steps in all schedules.
- Source: arXiv:2307.01557. There is no official code: networks and losses begin from the official baseline of
  OpenLane-V2, and what the abstract does not say is our reconstruction; each file says what.
- The defaults are small. ``PAPER`` has the sizes of the official large baseline.
"""

from jettison.domains.perception.modelling import Stage, Tensors, noise
from jettison.domains.perception.models.road_topoformer.config import PAPER, Config
from jettison.domains.perception.models.road_topoformer.losses import (
    brighten,
    element_loss,
    lane_loss,
    relation_loss,
)
from jettison.domains.perception.models.road_topoformer.network import RoadTopoFormer, Tensor, instances
from jettison.domains.perception.models.road_topoformer.reading import predict, read, targets
from jettison.graph.own_models import OwnConfig, OwnModel

__all__ = ["PAPER", "Config", "predict", "read", "targets"]
TASK = "road"
BATCH, RATE, SLOWER = 8, 1e-3, 0.1  # SLOWER: rate of the finetuning, as a share
RELATION_BATCH = 16  # samples of cached features
GAIN = 0.3  # of brightness and contrast in training
JOINT, LANES, ELEMENTS, RELATIONS, FINETUNE = "joint", "lanes", "elements", "relations", "finetune"


def stages(config: OwnConfig) -> tuple[Stage, ...]:
    """Return the stages of a schedule. Each of the three parts is trained ``config.steps`` steps in all of them."""
    if config.schedule == "joint":
        return (Stage(JOINT, config.steps, BATCH, RATE),)
    last = max(1, round(config.steps * config.finetune)) if config.schedule == "finetuned" else 0
    steps = max(1, config.steps - last)
    apart = (
        Stage(LANES, steps, BATCH, RATE, ("lanes.",)),
        Stage(ELEMENTS, steps, BATCH, RATE, ("elements.",)),
        Stage(RELATIONS, steps, RELATION_BATCH, RATE, ("relations.",)),
    )
    return (*apart, Stage(FINETUNE, last, BATCH, SLOWER * RATE)) if last else apart


STAGES: tuple[Stage, ...] = ()  # see ``stages``


def build(config: OwnConfig) -> RoadTopoFormer:
    """Return the network with new weights."""
    return RoadTopoFormer(config)


def example(config: OwnConfig) -> dict[str, Tensor]:
    """Return noise as images, and cameras (1, ...) that look ahead from the car, all alike."""
    images = noise({"images": (config.cameras, 3, config.height, config.width),
                    "front": (3, config.front_height, config.front_width)})  # fmt: skip
    ahead = Tensor([[0.5, -0.5, 0.0, 0.0], [0.5, 0.0, -1.0, 1.5], [1.0, 0.0, 0.0, 0.0]])
    return {**images, "projection": ahead.expand(1, config.cameras, 3, 4).clone()}


def condense(model: OwnModel, inputs: Tensors, stage: str) -> dict[str, Tensor] | None:
    """Return the instances of the detectors, which the stage ``relations`` learns from; None for other stages."""
    if stage != RELATIONS:
        return None
    return instances(model.find_lanes(inputs["images"], inputs["projection"]), model.find_elements(inputs["front"]))


def loss(model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> Tensor:
    """Return the loss of the parts that a stage trains.

    While the model trains, brightness and contrast of the images change at random.
    """
    if stage == RELATIONS:
        return relation_loss(*model.relations(dict(inputs)), inputs, targets)
    images, front = ((brighten(inputs[name], GAIN) if model.training else inputs[name]) for name in ("images", "front"))
    parts = []
    if stage != ELEMENTS:
        lanes = model.find_lanes(images, inputs["projection"])
        parts.append(lane_loss(lanes, targets))
    if stage != LANES:
        elements = model.find_elements(front)
        parts.append(element_loss(elements, targets))
    if stage in (JOINT, FINETUNE):
        made = instances(lanes, elements)
        parts.append(relation_loss(*model.relations(made), made, targets))
    return sum(parts)
