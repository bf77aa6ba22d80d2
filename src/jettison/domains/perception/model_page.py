"""``perceive show MODEL``: a page with what models predict of frames, how they learned, and what they learned from."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, shown
from jettison.core.journal import read_records
from jettison.domains.perception.curves import training_svg
from jettison.domains.perception.drawing import figure, write_html
from jettison.domains.perception.layouts.reading import image_size
from jettison.domains.perception.learning import JOURNAL, RESULT
from jettison.domains.perception.modelling import Sample
from jettison.domains.perception.scenes import Frame, Scene, View

SYNTHETIC = "This model was trained on synthetic images only: what it shows on real ones says little about its use."
Shown = Sequence[tuple[str, Sequence[tuple[str, dict[str, np.ndarray]]]]]  # frame -> model -> its pictures


def image_samples(images: Sequence[str | Path]) -> list[Sample]:
    """Return image files as frames of a front camera. Raises UsageError for a file that is missing or no image."""
    frames = []
    for image in map(Path, images):
        if not image.is_file():
            raise UsageError(f"image {image} does not exist: an image file is needed, or the folder of a model")
        image_size(image)  # raises if it cannot be read
        frames.append(Frame(str(image), {"front": View(image=image)}))
    scene = Scene("images", frames)
    return [Sample(scene, place, frame) for place, frame in enumerate(frames)]


def training_of(folder: Path) -> dict[str, Any]:
    """Return what training.json of a model folder says; {} if there is none. Raises UsageError if it is broken."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict):
        raise UsageError(f"{path} holds {shown(record)}: the record of a training is needed")
    return record


def notes_of(folder: Path) -> list[str]:
    """Return sentences about a model: its training, and that it is of synthetic images if it is."""
    record, notes = training_of(folder), []
    frames, stages = record.get("frames"), record.get("stages")
    if isinstance(frames, dict) and isinstance(stages, list):
        best = [f"{row.get('steps')} steps, {row.get('score')} on val" for row in stages if isinstance(row, dict)]
        notes.append(f"Trained on {frames.get('train')} frames: {'; '.join(best)}.")
    if record.get("synthetic") is True:
        notes.append(SYNTHETIC)
    return notes


def curves_of(folder: Path) -> str:
    """Return the learning curves of a model as SVG, drawn from its journal; empty if it has none."""
    path = folder / JOURNAL
    if not path.is_file():
        return ""
    records, _ = read_records(path)
    return training_svg([record for record in records[1:] if record])


def write_model_page(path: Path, models: Sequence[tuple[str, Path]], pictured: Shown) -> None:
    """Write the page: the models with notes and learning curves, then the frames with the pictures of every model.

    models: name and folder of each.
    """
    title = f"What {', '.join(name for name, _ in models)} predict{'s' if len(models) == 1 else ''}"
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, folder in models:
        parts.append(f"<h2>{escape(name)}</h2>" + "".join(f"<p>{escape(note)}</p>" for note in notes_of(folder)))
        parts.append(curves_of(folder))
    for frame, of_models in pictured:
        parts.append(f"<h2>{escape(frame)}</h2>")
        for name, pictures in of_models:
            parts += [figure(f"{name}: {what}", image) for what, image in pictures.items()]
    write_html(path, title, parts)
