"""Denoisers of diffusers as models like others: built without weights, and run on one tensor of inputs.

- A denoiser reads several tensors: the noisy sample, the time, what it is conditioned on. ``pack`` writes them into one
  row per sample, ``unpack`` reads them back, so that calibration, walks and measurements need no other form of batch.
- A row begins with three numbers: height and width of the sample, and tokens of the condition. Then follow the inputs
  that the family's row of families.yaml lists, in this order: argument -> shape, of symbols (H, W, S for tokens, names
  of the config's fields, numbers) and perhaps a condition (``if FIELD`` or ``if FIELD=VALUE``). ``a.b`` is the entry b
  of the mapping a. Numbers are float32, which holds times and classes exactly.
- Only classes of diffusers itself that families.yaml lists are built. Code in a folder is never run.
"""

import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from jettison.core.errors import UsageError, guarded, shown
from jettison.graph.anatomy import Family
from jettison.graph.families import families

HEAD = 3  # numbers at the start of a row
WHOLE = ("class_labels",)  # arguments that are whole numbers
MOST_NUMBER = 1 << 20  # of a field of a config; larger ones would take minutes to build
EXTRA = "pip install 'jettison[diffusers]'"


class DenoiserConfig:
    """The config of a denoiser: its fields as attributes, and those that Jettison asks every config for.

    model_type: the name of its class.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.model_type, self.values, self.dtype = str(values.get("_class_name")), dict(values), None

    def get_text_config(self) -> "DenoiserConfig":
        """Return this config: there is no section for text."""
        return self

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(name)
        return values[name]


@dataclass(frozen=True)
class Outputs:
    """What a denoiser predicts, (batch, ...): the noise or the velocity, by the name that all models' outputs have."""

    logits: torch.Tensor


class Denoiser:
    """Added to a class of diffusers: the members that Jettison asks every model for. ``_class_of`` adds ``forward``."""

    main_input_name, base_model_prefix = "packed", ""

    def can_generate(self) -> bool:
        """Whether the model writes text: it does not."""
        return False

    def get_input_embeddings(self) -> None:
        """Return None: there are no embeddings of tokens."""

    def get_output_embeddings(self) -> None:
        """Return None: there is no head over a vocabulary."""


def read_config(raw_config: Mapping[str, Any], path: Path | None, where: str) -> DenoiserConfig:
    """Read the config of a denoiser.

    path: not needed. where: the name of the config in errors.
    Raises UsageError for a class that families.yaml does not list, and for numbers that no model has.
    """
    kind = raw_config.get("_class_name")
    if not isinstance(kind, str) or getattr(families().get(kind), "domain", "") != "diffusion":
        known = [name for name, row in families().items() if row.domain == "diffusion"]
        raise UsageError(f"{where}: _class_name = {shown(kind)}; valid: {', '.join(known)}")
    for name, value in raw_config.items():
        numbers = value if isinstance(value, list) else [value]
        if wrong := [number for number in numbers if isinstance(number, int) and abs(number) > MOST_NUMBER]:
            raise UsageError(f"{where}: {name} = {wrong[0]:,}; at most {MOST_NUMBER:,} are read")
    return DenoiserConfig(raw_config)


def build_skeleton(config: DenoiserConfig) -> tuple[nn.Module, Family]:
    """Build a denoiser without weights, in eval mode; computed buffers have their values.

    Raises UsageError if diffusers is not installed or cannot build a model of this config.
    """
    kind = config.model_type
    values = {name: value for name, value in config.values.items() if not name.startswith("_")}
    values.pop("quantization_config", None)
    require_diffusers()
    with guarded(f"no {kind} can be built from this config"), quiet(), init_empty_weights():
        model = _class_of(kind).from_config(values)
    stored = model.state_dict().keys()
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and f"{path}.{name}".removeprefix(".") in stored:
                module._buffers[name] = buffer.to("meta")  # the checkpoint has its values
    return model.eval(), families()[kind]


@cache
def _class_of(kind: str) -> type:
    """Return the class of diffusers with the members of ``Denoiser``. It has the name of the class."""
    base = getattr(require_diffusers(), kind)

    @wraps(base.forward)  # pipelines and policies look at its signature
    def forward(self, *args, packed: torch.Tensor | None = None, **kwargs):
        """Run the model as diffusers does; or, with ``packed`` (batch, row), on such rows, and return ``Outputs``."""
        if packed is None:
            return base.forward(self, *args, **kwargs)
        return Outputs(base.forward(self, **unpack(self, packed), return_dict=False)[0])

    return type(kind, (Denoiser, base), {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward})


def require_diffusers():
    """Import diffusers. Raises UsageError that names the extra, if it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise UsageError(f"a diffusion pipeline needs {error.name}: {EXTRA}") from error
    return diffusers


@contextmanager
def quiet():
    """Keep diffusers and transformers from showing progress bars, and warnings such as those about unknown fields."""
    from diffusers.utils import logging
    from transformers.utils import logging as others

    before = [(module, module.get_verbosity(), module.is_progress_bar_enabled()) for module in (logging, others)]
    for module, _, _ in before:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level, bars in before:
            module.set_verbosity(level)
            if bars:
                module.enable_progress_bar()


def inputs_of(config: Any, kind: str) -> dict[str, list[str]]:
    """Return argument -> symbols of its shape, of the inputs that a model with this config has."""
    value = lambda name: config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    chosen = {}
    for name, text in families()[kind].inputs.items():
        shape, _, condition = text.partition(" if ")
        field, _, wanted = condition.partition("=")
        if not condition or (str(value(field)) == wanted if wanted else value(field)):
            chosen[name] = shape.split()
    return chosen


def shapes_of(config: Any, kind: str, height: int, width: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return argument -> shape of one sample."""
    value = lambda name: config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    sizes = {"H": height, "W": width, "S": tokens, "HW": height * width}
    if value("projection_class_embeddings_input_dim") and value("addition_time_embed_dim"):  # SDXL: text and 6 sizes
        sizes["P"] = value("projection_class_embeddings_input_dim") - 6 * value("addition_time_embed_dim")
    size = lambda symbol: int(symbol) if symbol.isdigit() else sizes.get(symbol) or _number(value(symbol))
    return {name: tuple(map(size, shape)) for name, shape in inputs_of(config, kind).items()}


def _number(value: Any) -> int:
    """Return a size that a config states, the first of a list (SD 1.x's UNets have one per block)."""
    return int(value[0] if isinstance(value, list | tuple) else value)


def pack(config: Any, kind: str, inputs: Mapping[str, torch.Tensor], height: int, width: int, tokens: int):
    """Return rows (batch, numbers) float32.

    inputs: argument -> tensor (batch, *shape).
    """
    batch = max(len(value) for value in inputs.values() if value.dim())
    parts = [torch.tensor([height, width, tokens]).expand(batch, HEAD).float()]
    for name, shape in shapes_of(config, kind, height, width, tokens).items():
        value = inputs[name].float().cpu()
        parts.append((value if value.dim() else value.expand(batch)).reshape(batch, math.prod(shape)))
    return torch.cat(parts, 1)


def unpack(model: nn.Module, packed: torch.Tensor) -> dict[str, Any]:
    """Return the keyword arguments of a denoiser's ``forward``, in the type of its weights.

    packed: (batch, numbers), from ``pack``.
    """
    kind, dtype = type(model).__name__, next(p.dtype for p in model.parameters() if p.is_floating_point())
    height, width, tokens = packed[0, :HEAD].int().tolist()
    arguments: dict[str, Any] = {}
    start = HEAD
    for name, shape in shapes_of(model.config, kind, height, width, tokens).items():
        value = packed[:, start : start + math.prod(shape)].reshape(len(packed), *shape)
        start += math.prod(shape)
        value = value.long() if name in WHOLE else value if name == "timestep" else value.to(dtype)
        outer, _, inner = name.partition(".")
        if inner:
            arguments.setdefault(outer, {})[inner] = value
        else:
            arguments[name] = value
    if kind == "FluxTransformer2DModel":  # where the patches are; the same for all samples
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        arguments["img_ids"] = places.to(packed.device, dtype)
        arguments["txt_ids"] = torch.zeros(tokens, 3, device=packed.device, dtype=dtype)
    if kind == "PixArtTransformer2DModel" and "added_cond_kwargs" not in arguments:
        arguments["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return arguments
