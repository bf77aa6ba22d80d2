"""``perceive evaluate`` and ``show --model``: run a perception model on a driving dataset, and score or draw it."""

from pathlib import Path

from jettison.core.errors import UsageError
from jettison.domains.perception.domain import TEST, open_samples, shapes_of
from jettison.domains.perception.drawing import write_figures
from jettison.domains.perception.judging import judge, predict
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.scoring import Scores
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import load


def evaluate_perception(
    model: str | Path,
    data: str | Path,
    *,
    split: str = TEST,
    layout: str | None = None,
    predictions: str | Path | None = None,
    adapter: bool = True,
) -> Scores:
    """Run a perception model on all frames of a split, and score what it predicts.

    model: its folder, also a compressed one.
    data: folder of a dataset in a layout of the model's task, or of rendered worlds.
    split: train, val or test.
    layout: of ``data``; None to look at its files.
    predictions: where the prediction files are kept, in the format that ``perceive score`` reads: a new folder, or a
        file. None keeps none.
    adapter: load the LoRA adapter of the folder, if it has one.
    Raises UsageError for a model of another kind, data that it cannot read, and missing or broken files.
    """
    source = ModelFolder(model)
    if source.anatomy.family.domain != "perception":
        raise UsageError(f"{source.name} is no perception model: `jettison evaluate` measures other models")
    samples = open_samples(source, data, split, layout)
    loaded = load(source.folder, adapter=adapter)
    return judge(samples, loaded.logits, shapes_of(source), None if predictions is None else Path(predictions))


def show_predictions(
    model: str | Path, data: str | Path, page: Path, *, split: str = TEST, frames: int = 4, layout: str | None = None
) -> list[str]:
    """Write a page with pictures of what a perception model predicts of some frames, beside what is true.

    page: the HTML file. frames: their number, spread evenly over the split.
    Returns the names of the frames. Raises UsageError as ``evaluate_perception`` does.
    """
    source = ModelFolder(model)
    if source.anatomy.family.domain != "perception":
        raise UsageError(f"{source.name} is no perception model")
    samples = open_samples(source, data, split, layout)
    loaded = load(source.folder)
    pictures = {
        sample.frame.name: picture_prediction(samples.model.TASK, sample, prediction)
        for sample, prediction in predict(samples, loaded.logits, shapes_of(source), samples.spread(frames))
    }
    write_figures(page, f"What {source.name} predicts in {data}", pictures)
    return list(pictures)
