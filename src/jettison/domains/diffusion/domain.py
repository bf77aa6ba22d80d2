"""The domain of diffusion pipelines. Denoisers read rows of ``graph.denoisers``, and are compared on fixed seeds."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.diffusion.judging import checked_program, draw_pair, weights_changed
from jettison.domains.diffusion.pipelines import own_program
from jettison.domains.diffusion.trajectories import (
    Run,
    decode,
    inputs_for,
    make_conditions,
    open_scheduler,
    run,
    sample_shape,
)
from jettison.domains.domain import Logits, Ready, Sources
from jettison.graph.folder import ModelFolder
from jettison.metrics.ssim import ssim
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import Labelled

DATA = "seeds"
SEEDS, STEPS = 8, 10  # of an evaluation: runs, and steps of each
BATCH = 8  # rows at once
PICTURES, SIDE = 8, 96  # of the report: pairs of images, and pixels of a side at least
EXAMPLE_TIME = 500.0


def check_reader(source: ModelFolder) -> str:
    """Describe the scheduler, and the program if there is one. Raises UsageError if one of them cannot be used."""
    reader = f"a scheduler, {type(open_scheduler(source)).__name__}"
    return f"{reader}, and a program for {checked_program(source).steps} steps" if own_program(source) else reader


def example(source: ModelFolder) -> tuple[torch.Tensor, str]:
    """Return a row (1, numbers) of a fixed seed: noise in the middle of a run."""
    state = torch.randn(1, *sample_shape(source), generator=torch.Generator().manual_seed(0))
    return inputs_for(source, state, torch.tensor(EXAMPLE_TIME), make_conditions(source, 1, 0)), "a sample of noise"


def check_recipe(source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
    """Raise UsageError for a recovery, or if the scheduler that calibration needs cannot be used."""
    if recipe.of("recover"):
        raise UsageError(f"{source.name} is a diffusion pipeline: recovery is for other models so far")
    if calibrated:
        open_scheduler(source)


def calibration(source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
    """Return rows (samples, numbers) that the original reads in runs of its own sampler, spread over all steps."""
    samples = settings["samples"]
    count = max(1, math.ceil(samples / STEPS))
    rows = torch.cat(run(source, _original(source), count=count, steps=STEPS, seed=seed).rows)
    return rows[torch.arange(samples) * len(rows) // samples]


def _original(source: ModelFolder) -> Logits:
    from jettison.graph.dense import load_dense
    from jettison.graph.skeleton import run_model

    model = load_dense(source, torch.float32)
    return lambda rows: torch.cat([run_model(model, part).logits for part in rows.split(BATCH)])


def calibration_digest(settings: Mapping[str, Any]) -> str | None:
    """Return None: the model makes its calibration data itself."""
    return None


def check_sources(source: ModelFolder, sources: Sources) -> None:
    """Check the number of seeds of an evaluation. Raises UsageError."""
    if sources.count is not None and sources.count < 1:
        raise UsageError(f"count = {sources.count}: 1 seed or more is needed, or None for {SEEDS}")
    open_scheduler(source)


def contents(sources: Sources) -> dict[str, str]:
    """Return {}: nothing is read but the model's own folder."""
    return {}


def amount(source: ModelFolder, sources: Sources) -> int:
    """Return the number of samples that are denoised: steps of all seeds."""
    return (sources.count or SEEDS) * STEPS


def same_outputs(source: ModelFolder, original: ModelFolder) -> None:
    """Raise UsageError if the two models are of different classes or read samples of different shapes."""
    shapes = [(model.config.model_type, *sample_shape(model)) for model in (source, original)]
    if shapes[0] != shapes[1]:
        words = [" x ".join(map(str, shape[1:])) + f" of {shape[0]}" for shape in shapes]
        raise UsageError(f"{original.name} reads {words[1]} and {source.name} {words[0]}: they cannot be compared")


@torch.no_grad()
def scores(source: ModelFolder, student: Ready, original: Ready | None, sources: Sources) -> dict[str, Any]:
    """Compare predictions on the inputs of the original's runs, and the images that both end in.

    Returns for every step of the run, and for all of them, ``noise_error``: the squared error of the predicted noise,
    divided by its square; and for all ``image_error``, the root mean square difference of the final images from 0 to 1
    (of the samples, relative, where the pipeline has no decoder), and ``ssim``, their mean structural similarity (where
    it has one). Without an original, the samples are only checked.
    A folder with a program runs it, with guidance, and is compared with full runs of the original. Noise errors are
    then left out where no weights changed. ``program`` has its cost: the share of a full run's FLOPs, and how many
    blocks were computed, of all in its calls.
    Raises JettisonError if the outputs are not finite.
    """
    count = sources.count or SEEDS
    if own_program(source):
        return _program_scores(source, student, original, count)
    own = run(source, student.logits, count=count, steps=STEPS)
    if not own.sample.isfinite().all():
        raise JettisonError("the model's outputs are not finite")
    name = f"{count} seeds, {STEPS} steps"
    if original is None:
        return {"denoising": {name: {"mean": round(float(own.sample.mean()), 6)}}}
    reference = run(source, original.logits, count=count, steps=STEPS)
    error, rows = _noise_errors(reference, student, original)
    images = [decode(source, sample) for sample in (own.sample, reference.sample)]
    pictured = images[0] is not None
    total = error | _image_errors(*(images if pictured else (own.sample, reference.sample)), pictured)
    return {"denoising": {name: total} | rows}


def _program_scores(source: ModelFolder, student: Ready, original: Ready | None, count: int) -> dict[str, Any]:
    pair = draw_pair(source, student, original, count)
    costs, computed = pair.program.costs, pair.counts["computed"]
    cost = {
        "share_of_flops": round(costs.run / costs.full, 6), "computed_blocks": computed,
        "blocks": len(pair.program.gates) * len(pair.program.units),
    }  # fmt: skip
    name = f"{count} seeds, {pair.note}"
    if pair.full is None:
        return {"denoising": {name: {"mean": round(float(pair.now.mean()), 6)}}, "program": {pair.note: cost}}
    total, rows = _image_errors(pair.now, pair.full, pair.pictured), {}
    if weights_changed(source):
        reference = run(source, original.logits, count=count, steps=pair.full_steps)
        error, rows = _noise_errors(reference, student, original)
        total = error | total
    return {"denoising": {name: total} | rows, "program": {pair.note: cost}}


def _noise_errors(reference: Run, student: Ready, original: Ready) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the error of the predicted noise on the inputs of a run: for all steps together, and for each."""
    errors, size, rows = [], [], {}
    for time, inputs in zip(reference.times, reference.rows, strict=True):
        expected, actual = original.logits(inputs).float(), student.logits(inputs).float()
        errors.append(float((actual - expected).square().mean()))
        size.append(float(expected.square().mean()))
        rows[f"t = {time:g}"] = {"noise_error": round(errors[-1] / max(size[-1], 1e-30), 9)}
    return {"noise_error": round(sum(errors) / max(sum(size), 1e-30), 9)}, rows


def _image_errors(now: torch.Tensor, before: torch.Tensor, pictured: bool) -> dict[str, float]:
    """Compare two batches of images from 0 to 1, or of latents."""
    difference = float((now - before).square().mean().sqrt())
    if not pictured:
        return {"image_error": round(difference / (float(before.square().mean().sqrt()) + 1e-30), 6)}
    return {"image_error": round(difference, 6), "ssim": round(float(ssim(now, before).mean()), 6)}


@torch.no_grad()
def exhibits(source: ModelFolder, student: Ready, original: Ready, sources: Sources) -> list[dict[str, Any]]:
    """Return pairs of images from the same seeds, for the report; [] if the pipeline has no decoder."""
    count = min(PICTURES, sources.count or SEEDS)
    if own_program(source):
        pair = draw_pair(source, student, original, count)
        images, names = ([pair.full, pair.now] if pair.pictured else [None]), ("full run", "program")
        note = f"a full run of the original, and the program. {pair.note}."
        if pair.full_steps != pair.program.steps:
            note = f"a full run of the original, of {pair.full_steps} steps, and the program, of {pair.note}."
    else:
        runs = (run(source, ready.logits, count=count, steps=STEPS) for ready in (original, student))
        images, names = [decode(source, ended.sample) for ended in runs], ("original", "now")
        note = f"the original, and this stage. {STEPS} steps of the pipeline's scheduler, without guidance."
    if images[0] is None:
        return []
    alike = ssim(*images).tolist()
    pictures = [
        {
            "caption": f"seed {seed}, {which}" + (f", SSIM {alike[seed]:.3f}" if number else ""),
            "png": _png(images[number][seed]),
        }
        for seed in range(count)
        for number, which in enumerate(names)
    ]
    note = f"Each pair starts from the same noise: {note}"
    return [{"title": "Images from the same seeds", "note": note, "pictures": pictures}]


def _png(image: torch.Tensor) -> str:
    """Return an image (3, height, width) as PNG in base64, enlarged by a whole factor if it is small."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"images need {error.name}: pip install 'jettison[vision]'") from error
    factor = max(1, SIDE // image.shape[-1])
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def training(source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
    """Raise UsageError: denoisers are not recovered yet."""
    raise UsageError(f"{source.name} is a diffusion pipeline: recovery is for other models so far")


def training_digests(recipe: Recipe, step: Step) -> dict[str, str]:
    """Return {}: there is no data beside the model's own."""
    return {}


def labelled(source: ModelFolder, recipe: Recipe) -> Labelled:
    """Raise UsageError: a denoiser has no labels."""
    raise UsageError(f"{source.name} is a diffusion pipeline: depth pruning trains on labels, which it has none of")


def lesson(
    student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float, features: float
) -> nn.Module:
    """Raise UsageError: denoisers are not recovered yet."""
    raise UsageError("a diffusion pipeline is not recovered so far")
