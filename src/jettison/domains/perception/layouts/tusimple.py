"""TuSimple: highway images of 1280 x 720 pixels with lanes as one x per row (github.com/TuSimple/tusimple-benchmark).

```
label_data_0313.json, label_data_0531.json, label_data_0601.json, test_label.json     one image a line:
    {"raw_file": "clips/0313-1/6040/20.jpg", "lanes": [[-2, 632, ...], ...], "h_samples": [240, 250, ...]}
clips/...                                                                             20 images a clip
```
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.documents import parse_json
from jettison.core.errors import UsageError, shown, unknown
from jettison.domains.perception.layouts.reading import (
    SPLITS,
    DataFolder,
    LazyFrames,
    entry,
    load_bytes,
    present,
    within,
)
from jettison.domains.perception.scenes import LARGEST, Frame, ImageLane, Scene, View

NAME = "TuSimple"
LABELS = {
    "train": ("label_data_0313.json", "label_data_0601.json"),
    "val": ("label_data_0531.json",),
    "test": ("test_label.json",),
}
CAMERA = "front"
MOST_ROWS, MOST_LANES = 10_000, 1000
ABSENT = -2.0  # x of a lane in a row where it is not


@dataclass(frozen=True, eq=False)
class RowLanes:
    """The lanes of an image, true or predicted.

    lanes: (lanes, rows), x in pixels, negative where the lane is not.
    rows: y of the rows; None in predictions that do not repeat them.
    run_time: milliseconds, of predictions.
    """

    image: str
    lanes: np.ndarray
    rows: np.ndarray | None = None
    run_time: float = 0.0

    def image_lanes(self) -> list[ImageLane]:
        """Return the lanes as points, without those of fewer than two."""
        points = [np.stack([lane[lane >= 0], self.rows[lane >= 0]], 1) for lane in self.lanes]
        return [ImageLane(lane) for lane in points if len(lane) > 1]


def recognizes(folder: Path) -> bool:
    """Whether the folder looks like TuSimple."""
    return any((folder / name).is_file() for names in LABELS.values() for name in names)


def read(folder: str | Path, split: str = "test", incomplete: bool = False) -> list[Scene]:
    """Read the labelled images of a split as one scene. Names of frames are paths of images.

    split: train (two label files), val or test. With ``incomplete``, label files and images may be missing.
    Raises UsageError for an unknown split, missing files and broken labels.
    """
    data = DataFolder(Path(folder), NAME)
    labels = read_labels(data, split, incomplete)
    kept = present(data, [(label.image, [label.image]) for label in labels], incomplete)
    labels = [labels[index] for index in kept]

    def frame(index: int) -> Frame:
        label = labels[index]
        return Frame(label.image, {CAMERA: View(image=data.file(label.image), lanes=label.image_lanes())})

    return [Scene(split, LazyFrames([label.image for label in labels], frame))]


def read_labels(data: DataFolder, split: str = "test", incomplete: bool = False) -> list[RowLanes]:
    """Read the label files of a split, without images. Raises UsageError as ``read`` does."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    files = [name for name in LABELS[split] if data.has(name)]
    if not files or (len(files) < len(LABELS[split]) and not incomplete):
        missing = [name for name in LABELS[split] if name not in files]
        raise UsageError(
            f"{data.path} has {len(files)} of {len(LABELS[split])} label files of the split {split!r}: "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    labels = [label for name in files for label in read_lines(data.file(name))]
    if not labels:
        raise UsageError(f"{data.path} lists no frames: {', '.join(files)} is empty")
    for label in labels:
        if label.rows is None:
            raise UsageError(f"{data.path}: the label of {label.image} has no 'h_samples', the y of the rows")
    return labels


def read_lines(path: Path) -> Iterator[RowLanes]:
    """Yield the images of a file of labels or predictions, one JSON object a line.

    Raises UsageError for a line that is none, for lanes of different lengths, and for an image that comes twice.
    """
    seen: set[str] = set()
    for number, line in enumerate(load_bytes(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        with within(where):
            record = parse_json(line, where)
            lanes = _row_lanes(record, where)
        if lanes.image in seen:
            raise UsageError(f"{where} repeats the image {shown(lanes.image)}: every image may come once")
        seen.add(lanes.image)
        yield lanes


def at_rows(lane: ImageLane, rows: Sequence[float]) -> list[float]:
    """Return x of a lane in pixels at rows, as files have it: to 0.01 pixels, ``ABSENT`` where the lane is not."""
    x, y = lane.points[np.argsort(lane.points[:, 1], kind="stable")].T
    there = (rows >= y[0]) & (rows <= y[-1])
    return [round(float(value), 2) for value in np.where(there, np.interp(rows, y, x), ABSENT)]


def _row_lanes(record: Any, where: str) -> RowLanes:
    image, lists = entry(record, "raw_file", str, where), entry(record, "lanes", list, where)
    rows = _numbers(entry(record, "h_samples", list, where), "h_samples") if "h_samples" in record else None
    lanes = [_numbers(lane, f"lane {index}") for index, lane in enumerate(lists[: MOST_LANES + 1])]
    count = len(rows) if rows is not None else len(lanes[0]) if lanes else 0
    if len(lanes) > MOST_LANES or count > MOST_ROWS:
        raise UsageError(f"{len(lists)} lanes of {count} rows: at most {MOST_LANES} of {MOST_ROWS} are read")
    for index, lane in enumerate(lanes):
        if len(lane) != count:
            raise UsageError(f"lane {index} has {len(lane)} values for {count} rows")
    time = entry(record, "run_time", (int, float), where) if "run_time" in record else 0.0
    return RowLanes(image, np.array(lanes).reshape(len(lanes), count), rows, float(time))


def _numbers(values: Any, what: str) -> np.ndarray:
    if not isinstance(values, list) or not all(type(one) in (int, float) and abs(one) <= LARGEST for one in values):
        raise UsageError(f"{what} is {shown(values)}: a list of numbers is needed")
    return np.array(values, dtype=np.float64)
