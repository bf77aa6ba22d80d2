"""SA-FSM: metric depth from a ring of cameras that hardly overlap (arXiv:2407.10406).

- No code was published. The base is SurroundDepth (arXiv:2204.03636), written anew; the neighbour-enhanced attention
  and the thresholds of the second round are our reconstruction.
- Three stages. ``round-1`` learns from the depths of matches between neighbouring cameras, whose places on the car give
  the scale; ``round-2`` from those that agree with the model so far; ``photometric`` also from the colours of other
  moments and neighbours. No lidar is read, except to keep what is best on ``val``.
- The pose network serves training alone. It stays in the folder, and ONNX files do not contain it.
"""

import torch

from jettison.domains.perception.modelling import Prediction, Sample, Stage, Tensors, noise
from jettison.domains.perception.models.sa_fsm.config import PAPER, Config
from jettison.domains.perception.models.sa_fsm.losses import match_loss, photometric_loss
from jettison.domains.perception.models.sa_fsm.network import SaFsm
from jettison.domains.perception.models.sa_fsm.reading import read, surroundings, usable_of
from jettison.domains.perception.models.sa_fsm.teaching import FIRST, LAST, SECOND, teach
from jettison.domains.perception.surround.matching import slots_of
from jettison.graph.own_models import OwnConfig, OwnModel

__all__ = ["PAPER", "STAGES", "TASK", "Config", "build", "example", "loss", "predict", "read", "targets", "teach"]

TASK = "depth"
DEPTH_PARTS = ("backbone", "crosses", "decoder")
STAGES = (
    Stage(FIRST, steps=400, batch=4, rate=1e-3, trains=DEPTH_PARTS),
    Stage(SECOND, steps=300, batch=4, rate=5e-4, trains=DEPTH_PARTS),
    Stage(LAST, steps=300, batch=4, rate=2e-4),
)


def build(config: OwnConfig) -> SaFsm:
    """Return the network with new weights."""
    return SaFsm(config)


def example(config: OwnConfig) -> dict[str, torch.Tensor]:
    """Return noise as images, and a regular ring of cameras."""
    pixels = noise({"pixels": (config.views, 3, config.height, config.width)})["pixels"].sigmoid()
    yaw = -torch.arange(config.views)[None] * (2 * torch.pi / config.views)
    focal = torch.full((1, config.views), float(config.focal))
    return {"pixels": pixels, "focal": focal, "yaw": yaw, "present": torch.ones(1, config.views)}


def targets(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return what can be learned of a frame without matches: depths of none, and what photometric losses need."""
    none = torch.zeros(config.views, config.height, config.width)
    return {"pseudo": none} | surroundings(config, sample, usable_of(config))


def loss(model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> torch.Tensor:
    """Return the loss of a stage, see ``losses``."""
    return (photometric_loss if stage == LAST else match_loss)(model, inputs, targets)


def predict(config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
    """Return the depth map of every camera of the frame, at the network's size."""
    slots = slots_of(sample.frame, config.views)
    maps = {view.camera.name: outputs["depth"][slot].numpy() for slot, view in enumerate(slots) if view is not None}
    return Prediction(depth=maps)
