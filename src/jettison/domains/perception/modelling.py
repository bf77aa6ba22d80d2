"""The protocol of a perception model: what it reads of a frame, what it learns, what it predicts.

- A model is a file or subfolder ``models/NAME`` with the members of ``PerceptionModel``, and a row ``jettison_NAME`` in
  families.yaml, which says where its units are: its blocks, and the roles of their matrices.
- Its task says which layouts of datasets it reads, and how it is scored: the frame has all of that.
- All other code treats models alike.
- Targets may depend on what a model has learned so far: a model that also has ``teach`` chooses them before each stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np
import torch

from jettison.core.errors import unknown
from jettison.core.validation import Fields
from jettison.domains.perception import models
from jettison.domains.perception.scenes import Frame, ImageLane, Road, Scene
from jettison.graph.anatomy import OWN
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import OwnConfig, OwnModel, Shapes, module_of

Tensors = Mapping[str, torch.Tensor]
# task -> layouts that it reads; if a folder fits several, the first
TASKS = {"lanes": ("culane", "tusimple"), "depth": ("ddad", "nuscenes"), "road": ("openlanev2",)}


@dataclass(frozen=True)
class Sample:
    """A frame to learn from or to predict, with the drive that it is a part of. place: its number in the scene."""

    scene: Scene
    place: int
    frame: Frame

    def other(self, steps: int) -> Frame | None:
        """Return the frame some steps later, or earlier if negative; None beyond the ends of the drive."""
        place = self.place + steps
        return self.scene.frames[place] if 0 <= place < len(self.scene.frames) else None


@dataclass(frozen=True)
class Prediction:
    """What a model predicts of a frame; the parts that its task has.

    lanes: in the image of the front camera.
    depth: name of the camera -> (height, width) metres, of any size.
    road: centerlines, traffic elements and their topology, with confidences.
    anchors: of lanes, to draw them: what they are -> lines in the image of the front camera.
    """

    lanes: Sequence[ImageLane] = ()
    depth: Mapping[str, np.ndarray] = field(default_factory=dict)
    road: Road = field(default_factory=Road)
    anchors: Mapping[str, Sequence[ImageLane]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stage of a training; the stages follow each other, each with a schedule of its own.

    steps, batch, rate: defaults of the numbers of steps and of samples in each; the peak of the learning rate.
    trains: how the names of the parameters that are trained begin; all others stay as they are.
    """

    name: str
    steps: int
    batch: int
    rate: float
    trains: tuple[str, ...] = ("",)
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Lessons:
    """What a model learns from in a stage, where that is not the same in all stages.

    targets: takes the place of the model's function of that name. record: what the journal and the result say of it.
    """

    targets: Callable[[OwnConfig, Sample], dict[str, torch.Tensor]]
    record: dict[str, Any] = field(default_factory=dict)


class PerceptionModel(Protocol):
    """A module ``models/NAME`` that describes a kind of model.

    TASK: a key of ``TASKS``.
    STAGES: of the training.
    Config: the fields of config.json, with defaults and limits.

    A model may have more members:

    - ``stages(config)`` returns the stages, if they depend on the config; STAGES is then not read.
    - ``condense(model, inputs, stage)`` returns what a stage learns from in place of the inputs of a batch: tensors
      (batch, ...) by name, made by parts of the network that the stage does not train. None for the inputs themselves.
      It is called once for every sample, in eval mode and without gradients, and the results are kept in memory.
    - ``teach(network, samples, stage, out, cache)`` returns ``Lessons``. It is called before every stage, for each
      split, with the network as the stages before left it. ``out`` is the folder of the run, ``cache`` one that runs
      may share. It is called again when a run continues, and must then return the same.
    """

    TASK: str
    STAGES: tuple[Stage, ...]
    Config: type[Fields]

    def build(self, config: OwnConfig) -> OwnModel:
        """Return the network with new weights, drawn by the seed of torch. It names its inputs and outputs."""

    def example(self, config: OwnConfig) -> dict[str, torch.Tensor]:
        """Return inputs (1, ...) that the network can read, of a fixed seed, made without data."""

    def read(self, config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
        """Return the inputs of one sample, without a batch dimension. Raises UsageError for what it cannot read."""

    def targets(self, config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
        """Return what is learned of one sample. Shapes are those of all samples. Raises UsageError as ``read``."""

    def loss(self, model: OwnModel, inputs: Tensors, targets: Tensors, stage: str) -> torch.Tensor:
        """Return a scalar loss. Inputs and targets: (batch, ...).

        While ``model.training``, inputs may be changed at random, by the seed of torch.
        """

    def predict(self, config: OwnConfig, outputs: Tensors, sample: Sample) -> Prediction:
        """Return the prediction of a sample from the outputs of the network, without a batch dimension, float32."""


def model_names() -> list[str]:
    """Return the names of the perception models, sorted."""
    return sorted(entry.name for entry in iter_modules(models.__path__))


def find_model(name: str) -> PerceptionModel:
    """Return the module of a model. Raises UsageError for an unknown name."""
    if name not in model_names():
        raise unknown("model", name, model_names())
    return module_of(OWN + name)


def stages_of(model: PerceptionModel, config: OwnConfig) -> tuple[Stage, ...]:
    """Return the stages of the training of a model with a config."""
    return model.stages(config) if hasattr(model, "stages") else model.STAGES


def model_of(source: ModelFolder) -> PerceptionModel:
    """Return the module of the model in a folder."""
    return module_of(source.config.model_type)


def noise(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return noise (1, ...) of a fixed seed by name, for ``example``."""
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(1, *shape, generator=rng) for name, shape in shapes.items()}
