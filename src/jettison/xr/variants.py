"""Variants of unit models: a model from some source, changed by a recipe. They are measured, run live and tuned.

A recipe of a unit model consists of parts joined with ``+``:

- ``original``: no change.
- ``folded``: fold the normalizations into the convolutions, and use the memory layout channels last. The function of
  the model stays the same.
- ``bfloat16``: weights and activations in bfloat16.
- ``half``: half of the frame's resolution.
- a recipe of Jettison (``w8``, ``w4``, a file): its first quantize step is applied to every ``nn.Linear``.
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
from jettison.domains.domain import find_domain
from jettison.domains.perception.xr.blocks import SIZES
from jettison.domains.perception.xr.judging import AGREEMENT, CALIBRATION, correlation, outputs, random_frames
from jettison.domains.perception.xr.models import MULTIPLE, native_input, native_model
from jettison.graph.described_files import is_described
from jettison.graph.folding import fold_batch_norms
from jettison.graph.modules import tile_linears
from jettison.offload.service.half import Half
from jettison.pipeline.in_memory import quantize_module
from jettison.recipe.recipe import load_recipe, preset_names

NATIVE_SOURCE, ORIGINAL = "native", "original"
PARTS = (ORIGINAL, "folded", "bfloat16", "half")
SEGMENT = 32  # tokens per inference of a language model


@dataclass(frozen=True)
class Variant:
    """A unit model with its source and recipe.

    source: ``native``, the path of an .onnx file or of a folder that Jettison wrote, or an nn.Module.
    size: of a native model (``full``, ``half``, ``small``, ``tiny``).
    seed: of the random weights of a native model.
    inputs: a batch of one frame; needed if the source is an nn.Module.
    """

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
    """A model that is ready to run; calling it runs one inference on ``inputs``.

    run: runs one inference on any frame. module: None for an ONNX model.
    """

    run: Callable[[torch.Tensor], Any]
    inputs: torch.Tensor
    module: nn.Module | None = None

    def __call__(self) -> Any:
        return self.run(self.inputs)


def open_variant(variant: Variant) -> Runnable:
    """Load a variant and apply its recipe. An nn.Module as source is copied first.

    Raises UsageError for an unknown source, size or recipe, and for a recipe that the model cannot take. Raises
    JettisonError for a file that cannot be opened.
    """
    source = variant.source
    if isinstance(source, nn.Module):
        if variant.inputs is None:
            raise UsageError(f"model {variant.model!r}: an nn.Module needs inputs, a tensor with a batch of one frame")
        return _apply_recipe(deepcopy(source).eval(), variant.inputs, variant)
    if str(source) == NATIVE_SOURCE:
        check_size(variant.size)
        module = native_model(variant.model, variant.size, variant.seed)
        return _apply_recipe(module, native_input(variant.model, variant.size), variant)
    if variant.recipe != ORIGINAL:
        raise UsageError(
            f"model {variant.model!r}, recipe {variant.recipe!r}: a file is run as it is, with recipe {ORIGINAL}"
        )
    if str(source).endswith(".onnx"):
        return _open_onnx(Path(source))
    if is_described(Path(source)):
        half = Half.load(source)
        return Runnable(half.module, torch.zeros(1, half.latent, device=half.device, dtype=half.dtype), half.module)
    if (Path(source) / "config.json").exists():
        from jettison.runtime.load import load

        loaded = load(source)
        if loaded.source.anatomy.family.domain != "text":  # an image classifier, or a perception model
            return Runnable(loaded.logits, find_domain(loaded.source).example(loaded.source)[0], loaded.model)
        ids = torch.arange(SEGMENT).unsqueeze(0) % loaded.model.config.vocab_size
        return Runnable(loaded.logits, ids, loaded.model)
    valid = f"{NATIVE_SOURCE!r}, an .onnx file, a folder that Jettison wrote"
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
    except Exception as error:  # the exceptions of onnxruntime have no common class
        raise JettisonError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
    declared = session.get_inputs()
    if len(declared) != 1 or declared[0].type != "tensor(float)":
        listed = ", ".join(f"{one.name}: {one.type}" for one in declared)
        raise UsageError(f"{path} has the inputs {listed}; exactly one float tensor is supported")
    shape = [side if isinstance(side, int) else 1 for side in declared[0].shape]  # a named side has no fixed size
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Runnable(lambda x: session.run(None, {declared[0].name: x.numpy()}), inputs)


def check_size(size: str) -> None:
    """Raise UsageError that lists the sizes of native models if ``size`` is none of them."""
    if size not in SIZES:
        raise unknown("size", size, SIZES, " of native models")


def check_recipe(recipe: str) -> list[str]:
    """Return the parts of a recipe without ``original``. Raises UsageError for an unknown part."""
    parts = recipe.split("+")
    for part in parts:
        if part not in PARTS and part not in preset_names() and not part.endswith((".yaml", ".yml")):
            raise unknown("part", part, [*PARTS, *preset_names()], f" of recipe {recipe!r} (nor a .yaml file)")
    return [part for part in parts if part != ORIGINAL]


def _apply_recipe(module: nn.Module, inputs: torch.Tensor, variant: Variant) -> Runnable:
    """Apply a recipe to a module. Quantization comes first, while the module is still in float32."""
    parts = check_recipe(variant.recipe)
    resize, dtype = lambda x: x, torch.float32
    if "half" in parts:
        if inputs.dim() != 4:
            raise UsageError(f"model {variant.model!r}, recipe {variant.recipe!r}: only pictures can be halved")
        if (sides := _half(variant, inputs.shape[-2:])) == list(inputs.shape[-2:]):
            raise UsageError(f"model {variant.model!r}, recipe {variant.recipe!r}: its frame is as small as it can be")
        resize = partial(_shrink, sides=sides)
    for part in parts:
        if part not in PARTS:
            _quantize(module, resize(random_frames(inputs, CALIBRATION)), part, variant)
    if "folded" in parts:
        module = fold_batch_norms(module, resize(inputs))
        if inputs.dim() == 4:
            module = module.to(memory_format=torch.channels_last)
    if "bfloat16" in parts:
        dtype = torch.bfloat16
        module = module.to(dtype)
    tile_linears(module)

    def run(x: torch.Tensor) -> Any:
        x = resize(x)
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
    """Quantize a module in place with the first quantize step of a recipe of Jettison, calibrated on ``frames``."""
    steps = load_recipe(name).of("quantize")
    try:
        if not steps:
            raise UsageError("there is no quantize step")
        quantize_module(module, steps[0], (frame.unsqueeze(0) for frame in frames))
    except UsageError as error:
        raise UsageError(f"model {variant.model!r}, recipe {name!r}: {error}") from None


@torch.no_grad()
def agreement(variant: Variant) -> float:
    """Return how similar the outputs of a variant and of the unmodified model are on random frames, 0 to 1.

    For every output, the mean over the frames is subtracted, and the correlation between the two models is taken; the
    result is the mean over outputs. Maps are compared at the size of the original's.

    The agreement is not an accuracy: native models have random weights, and the frames are noise. It tells how much of
    the function is left. ``tune`` uses a quality measured on data instead where it has one.
    """
    original = replace(variant, recipe=ORIGINAL)
    of_models = []
    for run in (open_variant(variant), open_variant(original)):
        of_frames = [outputs(run.run(frame.unsqueeze(0))) for frame in random_frames(run.inputs, AGREEMENT)]
        of_models.append([torch.cat(of_output).float() for of_output in zip(*of_frames, strict=True)])  # (frames, ...)
    return fmean(correlation(changed, unchanged) for changed, unchanged in zip(*of_models, strict=True))
