"""``perceive evaluate`` and ``show``: score a perception model on a driving dataset, or draw what models predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.domains.perception.domain import TEST, open_samples, shapes_of
from jettison.domains.perception.judging import judge, predict_one
from jettison.domains.perception.model_page import image_samples, notes_of, write_model_page
from jettison.domains.perception.modelling import Sample, model_of
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.scoring import Scores
from jettison.graph.folder import ModelFolder
from jettison.metrics.openlanev2 import RULES
from jettison.runtime.load import load


def evaluate_perception(
    model: str | Path,
    data: str | Path,
    *,
    split: str = TEST,
    layout: str | None = None,
    predictions: str | Path | None = None,
    adapter: bool = True,
    rule: str = "v2.1",
) -> Scores:
    """Run a perception model on all frames of a split, and score what it predicts.

    model: its folder, also a compressed one.
    data: folder of a dataset in a layout of the model's task, or of rendered worlds.
    split: train, val or test; nuScenes has none, there all scenes are read.
    layout: of ``data``; None to look at its files.
    predictions: where the prediction files are kept, in the format that ``perceive score`` reads: a new folder, or a
        file. None keeps none.
    adapter: load the LoRA adapter of the folder, if it has one.
    rule: of the OpenLane-V2 score: v2.1, v1.1 or v1.0.
    Raises UsageError for a model of another kind, data that it cannot read, and missing or broken files.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    source = _perception(model)
    samples = open_samples(source, data, split, layout)
    loaded = load(source.folder, adapter=adapter)
    place = None if predictions is None else Path(predictions)
    return judge(samples, loaded.logits, shapes_of(source), place, rule=rule)


def _perception(model: str | Path) -> ModelFolder:
    source = ModelFolder(model)
    if source.anatomy.family.domain != "perception":
        raise UsageError(f"{source.name} is no perception model: `jettison evaluate` measures other models")
    return source


@torch.no_grad()
def show_perception(
    models: Sequence[str | Path],
    page: str | Path,
    *,
    images: Sequence[str | Path] = (),
    data: str | Path | None = None,
    split: str = TEST,
    frames: int = 4,
) -> dict[str, Any]:
    """Write a page with what perception models predict of frames: predictions, learning curves, notes.

    models: their folders, all of one task.
    page: the HTML file.
    images: files that a front camera took.
    data: folder of a dataset, in place of images. split: of it. frames: how many, spread evenly.
    Returns page, models (folder and notes of each) and frames (names).
    Raises UsageError for models of other kinds or of several tasks, and for images or frames that they cannot read.
    """
    check_number("frames", frames, 1, 100, whole=True)
    if not models:
        raise UsageError("no folder of a perception model is named: one or more are needed, before the images")
    sources = [_perception(model) for model in models]
    tasks = {model_of(source).TASK for source in sources}
    if len(tasks) != 1:
        raise UsageError(f"the models are for {', '.join(sorted(tasks))}: models of one task are needed")
    if bool(images) == (data is not None):
        raise UsageError("name images, or a dataset with --data: one of both is needed to show what models predict")
    samples = _samples(sources[0], images, data, split, frames)
    runs = [load(source.folder).logits for source in sources]
    pictured = []
    with bar("show", len(samples)) as progress:
        for sample in samples:
            of_models = []
            for source, run in zip(sources, runs, strict=True):
                made = predict_one(model_of(source), source.config, run, shapes_of(source), sample)
                of_models.append((source.name, picture_prediction(model_of(source).TASK, sample, made)))
            pictured.append((sample.frame.name, of_models))
            progress.advance()
    write_model_page(Path(page), [(source.name, source.folder) for source in sources], pictured)
    notes = {str(source.folder): notes_of(source.folder) for source in sources}
    return {"page": str(page), "models": notes, "frames": [sample.frame.name for sample in samples]}


def _samples(
    source: ModelFolder, images: Sequence[str | Path], data: str | Path | None, split: str, count: int
) -> list[Sample]:
    """Return the frames to show: images, or some of a dataset."""
    if data is None:
        return image_samples(images)
    opened = open_samples(source, data, split)
    return [opened.sample(number) for number in opened.spread(count)]
