"""The domain of image classifiers. They read pixels, and are scored by the classes that they predict."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.progress import bar
from jettison.domains.domain import Logits, Ready, Sources
from jettison.domains.vision.data import Images, image_processor, open_images
from jettison.domains.vision.training_data import labelled as label_images
from jettison.graph.dense import has_fast_bfloat16
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import Labelled
from jettison.training.losses import kl

DATA = "images"
BATCH = 32  # images
SIDE = 64  # of an example, if the config states no size


def images_of(settings: Mapping[str, Any]) -> str:
    """Return the images that a recipe's calibration names. Raises UsageError if it names none."""
    if not settings.get("images"):
        raise UsageError(
            "an image classifier is calibrated on images: name a folder of class subfolders, or a parquet file, with "
            "--images (calibration.images in a recipe)"
        )
    return settings["images"]


def check_reader(source: ModelFolder) -> str:
    """Describe the image processor. Raises UsageError if it is missing or cannot be used."""
    return f"an image processor, {type(image_processor(source.folder)).__name__}"


def example(source: ModelFolder) -> tuple[torch.Tensor, str]:
    """Return noise (1, channels, height, width) of a fixed seed, and a description."""
    config = source.config
    side = getattr(config, "image_size", None) or SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    rng = torch.Generator().manual_seed(0)
    return torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=rng), "an image of noise"


def check_recipe(source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
    """Open the images of a recipe if it needs any. Raises UsageError as ``images_of`` and ``open_images`` do."""
    if calibrated or recipe.of("recover"):
        open_images(images_of(recipe.calibration), source)


def calibration(source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
    """Return pixels (samples, channels, height, width), made by the checkpoint's image processor."""
    return open_images(images_of(settings), source).sample(settings["samples"])[0]


def calibration_digest(settings: Mapping[str, Any]) -> str | None:
    """Return 16 hex digits of the content of the calibration images."""
    return open_images(images_of(settings)).digest


def check_sources(source: ModelFolder, sources: Sources) -> None:
    """Check images and count of an evaluation. Raises UsageError."""
    if not sources.images:
        raise UsageError(f"{source.name} is an image classifier: name the images to measure it on with --images")
    if sources.count is not None and sources.count < 1:
        raise UsageError(f"count = {sources.count}: 1 image or more is needed, or None for all of them")
    open_images(sources.images, source)


def contents(sources: Sources) -> dict[str, str]:
    """Return the path of the images -> 16 hex digits of their content."""
    return {str(sources.images): open_images(sources.images).digest}


def amount(source: ModelFolder, sources: Sources) -> int:
    """Return the number of images that an evaluation uses."""
    return len(open_images(sources.images).spread(sources.count))


def same_outputs(source: ModelFolder, original: ModelFolder) -> None:
    """Raise UsageError if the two models differ in their number of classes."""
    classes = [model.config.num_labels for model in (source, original)]
    if classes[0] != classes[1]:
        raise UsageError(
            f"{original.name} has {classes[1]} classes and {source.name} {classes[0]}: they cannot be compared"
        )


def scores(source: ModelFolder, student: Ready, original: Ready | None, sources: Sources) -> dict[str, Any]:
    """Measure a model on the images, see ``compare``. The result is stored under the path of the images."""
    images = open_images(sources.images, source)
    reference = original.logits if original else None
    return {"images": {str(sources.images): compare(student.logits, reference, images, sources.count)}}


@torch.no_grad()
def compare(student: Logits, original: Logits | None, images: Images, count: int | None = None) -> dict[str, Any]:
    """Measure the accuracy of ``student``, and its distance from ``original``, on images with labels.

    count: how many images, spread evenly over the set; None for all.
    Returns accuracy, its standard_error, loss (cross-entropy in nats), images, broken (how many could not be decoded),
    and with an original kl, KL(original ‖ student) in nats, and agreement, the share of images with equal predictions.
    Raises JettisonError if the outputs are not finite.
    """
    right = agreement = total = 0
    loss = divergence = 0.0
    chosen = images.spread(count)
    with bar("evaluate", len(chosen)) as progress:
        for places in chosen.split(BATCH):
            pixels, labels = images.load(places)  # (batch, channels, height, width), (batch,)
            guess = student(pixels).float().cpu().log_softmax(-1)  # (batch, classes)
            loss -= float(guess.gather(-1, labels.unsqueeze(-1)).sum(dtype=torch.float64))
            right += int((guess.argmax(-1) == labels).sum())
            if original:
                target = original(pixels).float().cpu().log_softmax(-1)  # (batch, classes)
                divergence += float((target.exp() * (target - guess)).sum(dtype=torch.float64))
                agreement += int((target.argmax(-1) == guess.argmax(-1)).sum())
            total += len(labels)
            progress.advance(len(labels), note=f"accuracy {right / total:.1%}")
    if not math.isfinite(loss):
        raise JettisonError(f"the loss is {loss / total}: the model's outputs are not finite")
    share = right / total
    measured = {
        "accuracy": round(share, 6),
        "standard_error": round(math.sqrt(share * (1 - share) / total), 6),
        "loss": round(loss / total, 6),
    }
    if original:
        measured |= {"kl": round(divergence / total, 6), "agreement": round(agreement / total, 6)}
    return measured | {"images": total, "broken": len(images.broken)}


def training(source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
    """Return pixels (samples, channels, height, width) of the calibration images. Labels are not needed."""
    return open_images(images_of(recipe.calibration), source).sample(step.options["samples"])[0]


def training_digests(recipe: Recipe, step: Step) -> dict[str, str]:
    """Return the path of the calibration images -> 16 hex digits of their content."""
    name = images_of(recipe.calibration)
    return {str(name): open_images(name).digest}


def labelled(source: ModelFolder, recipe: Recipe) -> Labelled:
    """Return the calibration images with their labels, a part of them held out for validation."""
    return label_images(open_images(images_of(recipe.calibration), source))


def lesson(
    student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float, features: float
) -> nn.Module:
    """Return a ``Lesson``. Raises UsageError for features: image classifiers have no common inner states."""
    if features:
        raise UsageError(f"recover.features = {features:g}: image classifiers learn from outputs only; valid: 0")
    return Lesson(student, teacher, temperature)


class Lesson(nn.Module):
    """Maps a batch to its loss. Only the student is a submodule, so the teacher is neither trained nor synchronized."""

    def __init__(self, student: nn.Module, teacher: nn.Module, temperature: float):
        super().__init__()
        self.student, self._teacher, self._temperature = student, [teacher], temperature

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean KL per image. pixels: (batch, channels, height, width)."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=has_fast_bfloat16(pixels.device)):
            with torch.no_grad():
                target = run_model(self._teacher[0], pixels).logits
            guess = run_model(self.student, pixels).logits
        return kl(target, guess, self._temperature) / len(pixels)
