"""Writes predictions as the files that benchmarks take, which ``scoring.score`` reads."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError
from jettison.core.files import check_folder, writable_file, write_atomic, write_json, write_text
from jettison.domains.perception.depth_files import KEY, frame_path
from jettison.domains.perception.layouts import culane, openlanev2, tusimple
from jettison.domains.perception.layouts.reading import DataFolder, within
from jettison.domains.perception.modelling import Prediction, Sample
from jettison.domains.perception.samples import Samples

Predicted = Iterable[tuple[Sample, Prediction]]
FOLDERS = ("culane", "ddad", "nuscenes")  # layouts whose predictions are a folder


def check_place(path: Path, layout: str) -> None:
    """Check, before any work, that predictions can be written there: a new or empty folder, or a file.

    Raises UsageError.
    """
    if layout not in FOLDERS:
        writable_file(path)
    elif check_folder(path) and path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is not empty: a new folder is needed for predictions of the layout {layout}")


def write_predictions(path: Path, samples: Samples, predicted: Predicted) -> None:
    """Write the predictions of all samples, in the format of their layout.

    path: a folder for lanes of CULane and for depth maps, else a file.
    """
    WRITERS[samples.layout](path, samples, predicted)


def _write_culane(path: Path, samples: Samples, predicted: Predicted) -> None:
    for sample, prediction in predicted:
        write_text(path / culane.label_name(sample.frame.name), culane.write_lanes(prediction.lanes))


def _write_tusimple(path: Path, samples: Samples, predicted: Predicted) -> None:
    labels = tusimple.read_labels(DataFolder(samples.folder, tusimple.NAME), samples.split)
    rows = {label.image: label.rows for label in labels}
    lines = []
    for sample, prediction in predicted:
        own = rows[sample.frame.name]
        lanes = [tusimple.at_rows(lane, own) for lane in prediction.lanes]
        lines.append(json.dumps({"raw_file": sample.frame.name, "lanes": lanes, "h_samples": own.tolist()}) + "\n")
    write_text(path, "".join(lines))


def _write_road(path: Path, samples: Samples, predicted: Predicted) -> None:
    results = {
        sample.frame.name: {"predictions": openlanev2.road_record(prediction.road, confidences=True)}
        for sample, prediction in predicted
    }
    write_json(path, {"method": samples.config.model_type, "results": results})


def _write_depth(path: Path, samples: Samples, predicted: Predicted) -> None:
    for sample, prediction in predicted:
        name = frame_path(sample.scene, sample.frame)
        for camera, depth in prediction.depth.items():
            with within(f"depth of {name}/{camera}"):
                if depth.ndim != 2 or not np.isfinite(depth).all():
                    raise UsageError(f"it has shape {depth.shape}: finite numbers (height, width) are needed")
            write_atomic(path / name / f"{camera}.npz", lambda file, depth=depth: _save(file, depth))


def _save(path: Path, depth: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **{KEY: depth.astype(np.float32)})


WRITERS: dict[str, Callable[[Path, Samples, Predicted], Any]] = {
    "culane": _write_culane,
    "tusimple": _write_tusimple,
    "openlanev2": _write_road,
    "ddad": _write_depth,
    "nuscenes": _write_depth,
}
