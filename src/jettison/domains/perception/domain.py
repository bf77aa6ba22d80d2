"""The domain of perception models. They read frames of driving datasets, and are scored as their benchmarks do."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.domains.domain import Logits, Ready, Sources
from jettison.domains.perception.drawing import picture_bytes
from jettison.domains.perception.judging import judge, outputs_of, predict
from jettison.domains.perception.modelling import model_of
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.samples import Samples, folder_digest
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import Shapes, pack
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import Labelled

DATA = "frames"
TRAIN, TEST = "train", "test"  # splits
PICTURES = 4  # frames of the report
COMPARED = 8  # frames at once


def data_of(settings: Mapping[str, Any]) -> str:
    """Return the dataset that a recipe's calibration names. Raises UsageError if it names none."""
    if not settings.get("images"):
        raise UsageError(
            "a perception model is calibrated on frames: name the folder of a driving dataset with --images "
            "(calibration.images in a recipe)"
        )
    return settings["images"]


def open_samples(source: ModelFolder, data: str | Path, split: str, layout: str | None = None) -> Samples:
    """Return the frames of a split of a dataset as the model of a folder reads them. Raises UsageError."""
    return Samples(model_of(source), source.config, data, split, layout)


def shapes_of(source: ModelFolder) -> tuple[Shapes, Shapes]:
    """Return the shapes of the inputs and outputs of a model, by name."""
    return source.skeleton.inputs, source.skeleton.outputs


def check_reader(source: ModelFolder) -> str:
    """Describe what the model reads: its config says everything."""
    inputs = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes_of(source)[0].items())
    return f"frames of driving datasets, for {model_of(source).TASK}: {inputs}"


def example(source: ModelFolder) -> tuple[torch.Tensor, str]:
    """Return the example of the model as packed inputs (1, ...), and a description."""
    return pack(model_of(source).example(source.config), shapes_of(source)[0]), "an example of its inputs"


def check_recipe(source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
    """Open the frames of a recipe if it needs any. Raises UsageError as ``data_of`` and ``Samples`` do."""
    if calibrated or recipe.of("recover"):
        open_samples(source, data_of(recipe.calibration), TRAIN)


def calibration(source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
    """Return packed inputs (samples, ...) of frames of the split ``train``, spread evenly over it."""
    samples = open_samples(source, data_of(settings), TRAIN)
    return pack(samples.inputs(samples.spread(settings["samples"])), shapes_of(source)[0])


def calibration_digest(settings: Mapping[str, Any]) -> str | None:
    """Return 16 hex digits of the content of the dataset."""
    return folder_digest(data_of(settings))


def check_sources(source: ModelFolder, sources: Sources) -> None:
    """Check the dataset of an evaluation. Raises UsageError."""
    if not sources.images:
        raise UsageError(
            f"{source.name} is a perception model: name the folder of the dataset to measure it on with --images"
        )
    if sources.count is not None and sources.count < 1:
        raise UsageError(f"count = {sources.count}: 1 frame or more is needed, or None for all of them")
    open_samples(source, sources.images, TEST)


def contents(sources: Sources) -> dict[str, str]:
    """Return the path of the dataset -> 16 hex digits of its content."""
    return {str(sources.images): folder_digest(sources.images)}


def amount(source: ModelFolder, sources: Sources) -> int:
    """Return the number of frames of the split ``test``."""
    return len(open_samples(source, sources.images, TEST).spread(sources.count))


def same_outputs(source: ModelFolder, original: ModelFolder) -> None:
    """Raise UsageError if the two models are of different kinds, or read or compute other shapes."""
    kinds = [(model.config.model_type, shapes_of(model)) for model in (source, original)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"{original.name} is {kinds[1]} and {source.name} {kinds[0]}: they cannot be compared")


def scores(source: ModelFolder, student: Ready, original: Ready | None, sources: Sources) -> dict[str, Any]:
    """Measure a model on the split ``test``: the metrics of its task, by row and column (see ``scoring``).

    With an original, also ``outputs``: the squared difference of the outputs, divided by their square.
    """
    samples, shapes = open_samples(source, sources.images, TEST), shapes_of(source)
    result = judge(samples, student.logits, shapes, count=sources.count)
    rows = {name: dict(zip(result.columns, row, strict=True)) for name, row in result.rows.items()}
    measured = {model_of(source).TASK: {name: {k: round(v, 6) for k, v in row.items()} for name, row in rows.items()}}
    if original is not None:
        error = _distance(samples, student.logits, original.logits, shapes, sources.count)
        measured["outputs"] = {"from the original": {"relative_error": error}}
    return measured


def _distance(samples: Samples, student: Logits, original: Logits, shapes: tuple[Shapes, Shapes], count) -> float:
    error = size = 0.0
    numbers = samples.spread(count)
    for first in range(0, len(numbers), COMPARED):
        part = numbers[first : first + COMPARED]
        expected, actual = (outputs_of(samples, run, shapes, part).double() for run in (original, student))
        error, size = error + float((actual - expected).square().sum()), size + float(expected.square().sum())
    return round(error / max(size, 1e-30), 9)


def exhibits(source: ModelFolder, student: Ready, original: Ready, sources: Sources) -> list[dict[str, Any]]:
    """Return some frames of the split ``test`` with what is true, and what the original and the model predict."""
    samples, shapes = open_samples(source, sources.images, TEST), shapes_of(source)
    numbers = samples.spread(PICTURES)
    runs = {"original": original.logits, "now": student.logits}
    made = {name: list(predict(samples, run, shapes, numbers)) for name, run in runs.items()}
    pictures = []
    for place in range(len(numbers)):
        for name, pairs in made.items():
            sample, prediction = pairs[place]
            for what, image in picture_prediction(samples.model.TASK, sample, prediction).items():
                png = base64.b64encode(picture_bytes(image, "png")).decode()
                pictures.append({"caption": f"frame {numbers[place] + 1}, {name}: {what}", "png": png})
    note = "Frames spread over the test split."
    return [{"title": "Frames and predictions", "note": note, "wide": True, "pictures": pictures}]


def training(source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
    """Return packed inputs (samples, ...) of the calibration's frames. Labels are not needed."""
    samples = open_samples(source, data_of(recipe.calibration), TRAIN)
    return pack(samples.inputs(samples.spread(step.options["samples"])), shapes_of(source)[0])


def training_digests(recipe: Recipe, step: Step) -> dict[str, str]:
    """Return the path of the dataset -> 16 hex digits of its content."""
    name = data_of(recipe.calibration)
    return {str(name): folder_digest(name)}


def labelled(source: ModelFolder, recipe: Recipe) -> Labelled:
    """Raise UsageError: depth pruning learns from classes."""
    raise UsageError(f"{source.name} is a perception model: depth pruning trains on classes, which it has none of")


def lesson(
    student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float, features: float
) -> nn.Module:
    """Return a ``Lesson``. Raises UsageError for features: perception models have no common inner states."""
    if features:
        raise UsageError(f"recover.features = {features:g}: perception models learn from outputs only; valid: 0")
    return Lesson(student, teacher)


class Lesson(nn.Module):
    """Maps a batch to the squared distance of the outputs. Only the student is a submodule."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student, self._teacher = student, [teacher]

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Return the mean squared difference, as a share of the mean square. packed: inputs (batch, ...)."""
        with torch.no_grad():
            target = self._teacher[0](packed).logits.float()
        guess = self.student(packed).logits.float()
        return (guess - target).square().mean() / target.square().mean().clamp(min=1e-12)
