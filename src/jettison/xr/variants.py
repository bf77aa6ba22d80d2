"""What can be run as a unit model, and what can be done to it: the variants that are measured, run live and tuned.

A recipe of a unit model is made of parts with ``+`` between: ``original``; ``folded`` (normalizations into
convolutions, channels last: the same function); ``bfloat16``; ``half`` (half of the frame's resolution); or a recipe
of Jettison (``w8``, ``w4``, a file), whose first quantize step goes over every ``nn.Linear``.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.domains.perception.xr.blocks import SIZES
from jettison.domains.perception.xr.judging import AGREEMENT, CALIBRATION, correlation, outputs, random_frames
from jettison.domains.perception.xr.models import MULTIPLE, native_input, native_model
from jettison.graph.modules import tile_linears
from jettison.graph.surgery import fold_norms
from jettison.pipeline.in_memory import quantize_module
from jettison.recipe.recipe import load_recipe, preset_names

NATIVE_SOURCE, ORIGINAL = "native", "original"
PARTS = (ORIGINAL, "folded", "bfloat16", "half")
SEGMENT = 32  # tokens that a language model reads in one inference


@dataclass(frozen=True)
class Variant:
    """A unit model as it is run. source: ``native``, an .onnx file, a folder of Jettison's, or an nn.Module, which
    needs ``inputs``. size: of a native one (``full``, ``half``, ``small``, ``tiny``)."""

    model: str
    source: Any = NATIVE_SOURCE
    size: str = "small"
    recipe: str = ORIGINAL
    seed: int = 0
    inputs: torch.Tensor | None = None

    def __str__(self) -> str:
        source = self.size if self.source == NATIVE_SOURCE else Path(str(self.source)).name
        return f"{self.model} {source}, {self.recipe}"


@dataclass
class Runnable:
    """module: None of an ONNX model. run: one inference of ``inputs``."""

    run: Callable[[torch.Tensor], Any]
    inputs: torch.Tensor
    module: nn.Module | None = None

    def __call__(self) -> Any:
        return self.run(self.inputs)


def open_variant(variant: Variant) -> Runnable:
    """Ready to run. Raises UsageError for a source, size or recipe that is not known or does not go together."""
    source = variant.source
    if isinstance(source, nn.Module):
        if variant.inputs is None:
            raise UsageError(f"model {variant.model!r}: an nn.Module needs inputs, a tensor with a batch of one frame")
        return _treated(deepcopy(source).eval(), variant.inputs, variant)
    if str(source) == NATIVE_SOURCE:
        check_size(variant.size)
        module = native_model(variant.model, variant.size, variant.seed)
        return _treated(module, native_input(variant.model, variant.size), variant)
    if variant.recipe != ORIGINAL:
        raise UsageError(f"model {variant.model!r}, recipe {variant.recipe!r}: a file is run as it is ({ORIGINAL})")
    if str(source).endswith(".onnx"):
        return _open_onnx(Path(source))
    if (Path(source) / "config.json").exists():
        from jettison.runtime.load import load

        loaded = load(source)
        ids = torch.arange(SEGMENT).unsqueeze(0) % loaded.model.config.vocab_size
        return Runnable(loaded.logits, ids, loaded.model)
    valid = f"{NATIVE_SOURCE!r}, an .onnx file, a folder of Jettison's"
    raise UsageError(f"model {variant.model!r}: unknown source {str(source)!r}; valid: {valid}")


def _open_onnx(path: Path) -> Runnable:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{path}: onnxruntime is not installed; pip install 'jettison[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise JettisonError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
    given = session.get_inputs()
    if len(given) != 1 or given[0].type != "tensor(float)":
        wants = ", ".join(f"{each.name}: {each.type}" for each in given)
        raise UsageError(f"{path} wants {wants}; one float tensor can be given")
    shape = [side if isinstance(side, int) else 1 for side in given[0].shape]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Runnable(lambda x: session.run(None, {given[0].name: x.numpy()}), inputs)


def check_size(size: str) -> None:
    """Raises UsageError that lists what there is."""
    if size not in SIZES:
        raise unknown("size", size, SIZES, " of native models")


def check_recipe(recipe: str) -> list[str]:
    """Its parts. Raises UsageError for one that is not known."""
    parts = recipe.split("+")
    for part in parts:
        if part not in PARTS and part not in preset_names() and not part.endswith((".yaml", ".yml")):
            raise unknown("part", part, [*PARTS, *preset_names()], f" of recipe {recipe!r} (nor a .yaml file)")
    return [part for part in parts if part != ORIGINAL]


def _treated(module: nn.Module, inputs: torch.Tensor, variant: Variant) -> Runnable:
    parts = check_recipe(variant.recipe)
    before, dtype = lambda x: x, torch.float32
    if "half" in parts:
        if inputs.dim() != 4:
            raise UsageError(f"model {variant.model!r}, recipe {variant.recipe!r}: only pictures can be halved")
        if (sides := _half(variant, inputs.shape[-2:])) == list(inputs.shape[-2:]):
            raise UsageError(f"model {variant.model!r}, recipe {variant.recipe!r}: its frame is as small as it can be")
        before = partial(_shrink, sides=sides)
    for part in parts:
        if part not in PARTS:
            _quantize(module, before(random_frames(inputs, CALIBRATION)), part, variant)
    if "folded" in parts:
        fold_norms(module)
        if inputs.dim() == 4:
            module = module.to(memory_format=torch.channels_last)
    if "bfloat16" in parts:
        dtype = torch.bfloat16
        module = module.to(dtype)
    tile_linears(module)

    def run(x: torch.Tensor) -> Any:
        x = before(x)
        if "folded" in parts and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return module(x.to(dtype))

    return Runnable(run, inputs, module)


def _half(variant: Variant, sides: torch.Size) -> list[int]:
    multiple = MULTIPLE.get(variant.model, 1) if variant.source == NATIVE_SOURCE else 1
    return [max(multiple, round(side / 2 / multiple) * multiple) for side in sides]


def _shrink(x: torch.Tensor, sides: list[int]) -> torch.Tensor:
    return nn.functional.interpolate(x, size=sides, mode="bilinear", antialias=True)


def _quantize(module: nn.Module, frames: torch.Tensor, name: str, variant: Variant) -> None:
    """By the first quantize step of a recipe of Jettison."""
    steps = load_recipe(name).of("quantize")
    try:
        if not steps:
            raise UsageError("there is no quantize step")
        quantize_module(module, steps[0], (frame.unsqueeze(0) for frame in frames))
    except UsageError as error:
        raise UsageError(f"model {variant.model!r}, recipe {name!r}: {error}") from None


@torch.no_grad()
def agreement(variant: Variant) -> float:
    """How alike a variant and the unmodified model answer to random frames: for each output, the correlation between
    what the frames change in the one and in the other; the mean over outputs, 0 to 1. Maps are compared at the size of
    the original's.

    It is no accuracy: native models have random weights, and the frames are noise. It says how much of the function is
    left; a figure measured on data takes its place where there is one (``quality`` of ``tune``).
    """
    original = replace(variant, recipe=ORIGINAL)
    answers = []
    for run in (open_variant(variant), open_variant(original)):
        found = [outputs(run.run(frame.unsqueeze(0))) for frame in random_frames(run.inputs, AGREEMENT)]
        answers.append([torch.cat(each).float() for each in zip(*found, strict=True)])
    return fmean(correlation(mine, yours) for mine, yours in zip(*answers, strict=True))
