"""``perceive evaluate``: run a perception model on a driving dataset, and score it as the dataset's benchmark does."""

from pathlib import Path

from jettison.core.errors import UsageError
from jettison.domains.perception.domain import TEST, open_samples, shapes_of
from jettison.domains.perception.judging import judge
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
