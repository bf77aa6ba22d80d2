"""Runs a perception model on a dataset, and scores it with the metrics of its task's benchmarks."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from jettison.core.errors import JettisonError
from jettison.core.progress import bar
from jettison.domains.domain import Logits
from jettison.domains.perception.layouts.reading import within
from jettison.domains.perception.modelling import PerceptionModel, Prediction, Sample
from jettison.domains.perception.predictions import FOLDERS, check_place, write_predictions
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.scoring import Scores, score
from jettison.graph.own_models import OwnConfig, Shapes, pack, unpack

BATCH = 8  # frames at once
HEADLINES = {  # layout -> the row and the column that say how good a model is; higher is better
    "culane": ("all", "F1"),
    "tusimple": ("all", "accuracy"),
    "openlanev2": ("all", "OLS"),
    "ddad": ("all, metric scale", "a1"),
    "nuscenes": ("all, metric scale", "a1"),
}


@torch.no_grad()
def outputs_of(samples: Samples, run: Logits, shapes: tuple[Shapes, Shapes], numbers: list[int]) -> torch.Tensor:
    """Return the packed outputs (n, ...) of a model for some samples, float32 on the CPU.

    shapes: of the inputs and outputs. Raises JettisonError if they are not finite.
    """
    outputs = run(pack(samples.inputs(numbers), shapes[0])).float().cpu()
    if not outputs.isfinite().all():
        raise JettisonError("the model's outputs are not finite")
    return outputs


def predict(
    samples: Samples, run: Logits, shapes: tuple[Shapes, Shapes], numbers: list[int]
) -> Iterator[tuple[Sample, Prediction]]:
    """Yield samples and what a model predicts of them.

    run: maps packed inputs to packed outputs. shapes: of the inputs and outputs.
    numbers: of the samples.
    Raises JettisonError if the outputs are not finite, and UsageError for broken frames.
    """
    with bar("predict", len(numbers)) as progress:
        for first in range(0, len(numbers), BATCH):
            part = numbers[first : first + BATCH]
            outputs = outputs_of(samples, run, shapes, part)
            for place, number in enumerate(part):
                sample = samples.sample(number)
                own = {name: value[0] for name, value in unpack(outputs[place : place + 1], shapes[1]).items()}
                with within(f"frame {sample.frame.name}"):
                    prediction = samples.model.predict(samples.config, own, sample)
                yield sample, prediction
                progress.advance()


def predict_one(
    model: PerceptionModel, config: OwnConfig, run: Logits, shapes: tuple[Shapes, Shapes], sample: Sample
) -> Prediction:
    """Return what a model predicts of one sample. Arguments as ``predict``. Raises as ``predict``."""
    with within(f"frame {sample.frame.name}"):
        inputs = {name: tensor[None] for name, tensor in model.read(config, sample).items()}
        outputs = run(pack(inputs, shapes[0])).float().cpu()
        if not outputs.isfinite().all():
            raise JettisonError("the model's outputs are not finite")
        return model.predict(config, {name: value[0] for name, value in unpack(outputs, shapes[1]).items()}, sample)


def judge(
    samples: Samples,
    run: Logits,
    shapes: tuple[Shapes, Shapes],
    path: Path | None = None,
    count: int | None = None,
    rule: str = "v2.1",
) -> Scores:
    """Score a model on samples, as ``scoring.score`` scores its prediction files.

    count: how many samples, spread evenly; None for all.
    path: where the prediction files are written, and stay; None for a place of their own that is removed.
    rule: of the OpenLane-V2 score, see ``metrics.openlanev2``.
    """
    if path is not None:
        check_place(path, samples.layout)
    with TemporaryDirectory() as scratch:
        place = path or Path(scratch) / ("made" if samples.layout in FOLDERS else "made.json")
        if samples.layout in FOLDERS:
            place.mkdir(parents=True, exist_ok=True)
        numbers = samples.spread(count)
        write_predictions(place, samples, predict(samples, run, shapes, numbers))
        only = None if count is None else {samples.name(number) for number in numbers}
        return score(place, samples.folder, samples.layout, samples.split, rule=rule, only=only)


def headline(scores: Scores) -> float:
    """Return the number that says how good a model is, from 0 to 1."""
    row, column = HEADLINES[scores.layout]
    return float(scores.rows[row][scores.columns.index(column)])
