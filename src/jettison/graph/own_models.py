"""Models of Jettison's own, which no library has: read from config.json, built without weights, run on one tensor.

- The ``model_type`` is ``jettison_NAME``. Its row in families.yaml names the domain; the module
  ``jettison.domains.DOMAIN.models.NAME`` has ``Config`` (the fields of config.json, with limits) and ``build`` (which
  makes the network). It is imported by its name when it is needed, as methods are. No code in a folder is run.
- A network is an ``OwnModel``: it names the shapes of its inputs and outputs, and computes the one from the other. All
  other code sees one tensor each: a single tensor as it is, several in rows, see ``pack``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from jettison.core.errors import UsageError, guarded, shown
from jettison.core.validation import read_fields
from jettison.graph.anatomy import OWN, Family
from jettison.graph.families import families

BESIDE = ("quantization_config", "training")  # fields of config.json that are not the network's
Shapes = Mapping[str, tuple[int, ...]]  # name -> shape of one sample


class OwnConfig:
    """The config of a model of our own: its fields as attributes, and those that Jettison asks every config for."""

    def __init__(self, model_type: str, fields: Any):
        self.model_type, self.fields, self.dtype = model_type, fields, None

    def get_text_config(self) -> "OwnConfig":
        """Return this config: there is no section for text."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "fields" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.fields, name)


@dataclass(frozen=True)
class Outputs:
    """What a model computes, (batch, ...), packed, by the name that all models' outputs have."""

    logits: torch.Tensor


class OwnModel(nn.Module):
    """Base of the networks: the members that Jettison asks every model for.

    A subclass sets ``inputs`` and ``outputs``, the shapes of one sample by name, and defines ``compute``.
    """

    main_input_name, base_model_prefix = "packed", ""
    config: OwnConfig
    inputs: Shapes
    outputs: Shapes

    def compute(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs (batch, ...) by name. inputs: (batch, ...) by name."""
        raise NotImplementedError(type(self).__name__)

    def forward(self, packed: torch.Tensor) -> Outputs:
        """Run the model. packed: inputs, see ``pack``."""
        inputs = unpack(packed.to(self.dtype), self.inputs)
        return Outputs(pack(self.compute(**inputs), self.outputs))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(value.device for value in (*self.parameters(), *self.buffers()))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; if all are packed, that of the first buffer of floating-point numbers."""
        return next(value.dtype for value in (*self.parameters(), *self.buffers()) if value.is_floating_point())

    def can_generate(self) -> bool:
        """Whether the model writes text: it does not."""
        return False

    def get_input_embeddings(self) -> None:
        """Return None: there are no embeddings of tokens."""

    def get_output_embeddings(self) -> None:
        """Return None: there is no head over a vocabulary."""


def pack(tensors: Mapping[str, torch.Tensor], shapes: Shapes) -> torch.Tensor:
    """Return tensors (batch, ...) as one: a single one as it is, several as rows (batch, numbers).

    shapes: name -> shape of one sample; the order of the numbers in a row. Raises UsageError for other shapes.
    """
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape[1:]) != tuple(shape):
            actual = tuple(tensors[name].shape[1:]) if name in tensors else "missing"
            raise UsageError(f"{name} of a sample is {actual}: the shape {tuple(shape)} is needed")
    if len(shapes) == 1:
        return tensors[next(iter(shapes))]
    parts = (tensors[name] for name in shapes)
    return torch.cat([(part.flatten(1) if part.dim() > 1 else part[:, None]).float() for part in parts], 1)


def unpack(packed: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return the tensors (batch, ...) of ``pack`` by name."""
    if len(shapes) == 1:
        return {next(iter(shapes)): packed}
    parts = packed.split([math.prod(shape) for shape in shapes.values()], 1)
    # Not unflatten, with which ONNX files would have a fixed batch.
    return {name: part.reshape(part.shape[0], *shape) if shape else part[:, 0]
            for (name, shape), part in zip(shapes.items(), parts, strict=True)}  # fmt: skip


def module_of(model_type: str) -> ModuleType:
    """Return the module of a model. Raises UsageError for a type that has no row in families.yaml or no module."""
    family = families().get(model_type)
    if family is None or not family.own:
        known = [name for name, row in families().items() if row.own]
        raise UsageError(f"model_type {shown(model_type)} is no model of Jettison's own; valid: {', '.join(known)}")
    name = f"jettison.domains.{family.domain}.models.{model_type.removeprefix(OWN)}"
    if find_spec(name) is None:
        raise UsageError(f"model_type {shown(model_type)} has a row in families.yaml, but there is no module {name}")
    return import_module(name)


def read_config(raw_config: Mapping[str, Any], path: Path | None, where: str) -> OwnConfig:
    """Read the config of a model of our own.

    path: not needed. where: the name of the config in errors.
    Raises UsageError for an unknown type or field, and for a value that the model does not allow.
    """
    model_type = raw_config.get("model_type")
    fields = {name: value for name, value in raw_config.items() if name not in ("model_type", *BESIDE)}
    return make_config(model_type, fields, where)


def make_config(model_type: str, fields: Mapping[str, Any], where: str) -> OwnConfig:
    """Make a config from its fields; those that are left out have their defaults. Raises as ``read_config``."""
    say = lambda field, value, needed: f"{where}: {field} = {value}: {needed}"
    module = module_of(model_type)
    return OwnConfig(model_type, read_fields(module.Config, fields, say, "field", f" of {where}"))


def make_model(config: OwnConfig) -> OwnModel:
    """Build the network of a config with its initial weights, which depend on the seed of torch."""
    with guarded(f"no {config.model_type} can be built from this config"):
        model = module_of(config.model_type).build(config)
    model.config = config
    return model


def build_skeleton(config: OwnConfig) -> tuple[OwnModel, Family]:
    """Build a model without weights, in eval mode; computed buffers have their values."""
    with init_empty_weights():
        model = make_model(config)
    for module in model.modules():
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                module._buffers[name] = module._buffers[name].to("meta")  # the checkpoint has its values
    return model.eval(), families()[config.model_type]
