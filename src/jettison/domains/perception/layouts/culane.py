"""CULane: single images of 1640 x 590 pixels with their lane lines (arXiv:1712.06080).

```
list/train_gt.txt, val_gt.txt, val.txt, test.txt      one image a line, such as /driver_23_30frame/.../00000.jpg
list/test_split/test0_normal.txt, ...                 the images of nine kinds of scenes
driver_.../.../00000.jpg, 00000.lines.txt             lanes, one a line: x y x y ...
```
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jettison.core.errors import UsageError, shown, unknown
from jettison.domains.perception.layouts.reading import (
    SPLITS,
    DataFolder,
    LazyFrames,
    load_bytes,
    present,
    within,
)
from jettison.domains.perception.scenes import Frame, ImageLane, Scene, View, checked_points

NAME, LABELS = "CULane", ".lines.txt"
LISTS = {"train": ("train_gt.txt", "train.txt"), "val": ("val_gt.txt", "val.txt"), "test": ("test.txt",)}
KINDS = "list/test_split"
CAMERA = "front"


def recognizes(folder: Path) -> bool:
    """Whether the folder looks like CULane."""
    return any((folder / "list" / name).is_file() for names in LISTS.values() for name in names)


def read(
    folder: str | Path, split: str = "test", incomplete: bool = False, images: bool = True, labels: bool = True
) -> list[Scene]:
    """Read the images of a split as one scene. Names of frames are paths of images, without a slash in front.

    split: train, val or test.
    incomplete: whether frames with missing files may be left out.
    images, labels: whether images and lane lines are needed.
    Raises UsageError for an unknown split, missing files, and (when a frame is read) broken labels.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    data = DataFolder(Path(folder), NAME)
    lists = [f"list/{name}" for name in LISTS[split]]
    listed = next((name for name in lists if data.has(name)), None)
    if listed is None:
        raise UsageError(f"{folder} has no {' or '.join(lists)}, the list of the images of the split {split!r}")
    names = image_names(data, listed)
    wanted = [(name, [name] * images + [label_name(name)] * labels) for name in names]
    names = [names[index] for index in present(data, wanted, incomplete)]

    def frame(index: int) -> Frame:
        path = data.file(names[index]) if images else None
        lanes = read_lanes(data.file(label_name(names[index]))) if labels else None
        return Frame(names[index], {CAMERA: View(image=path, lanes=lanes)})

    return [Scene(split, LazyFrames(names, frame))]


def image_names(data: DataFolder, listed: str) -> list[str]:
    """Return the names of images in a list file: the first word of every line, without the slash in front."""
    return [line.split()[0].lstrip("/") for line in data.lines(listed)]


def kinds(folder: str | Path) -> dict[str, set[str]]:
    """Return the kinds of test scenes, such as ``night``, with the names of their images; empty without lists."""
    data = DataFolder(Path(folder), NAME)
    files = sorted((data.path / KINDS).glob("test*.txt"))
    return {file.stem.partition("_")[2] or file.stem: set(image_names(data, f"{KINDS}/{file.name}")) for file in files}


def label_name(image: str) -> str:
    """Return the name of the label or prediction file of an image."""
    return image.rpartition(".")[0] + LABELS


def read_lanes(path: Path) -> list[ImageLane]:
    """Read the lanes of a label or prediction file. An empty file has none; lanes of one point are left out.

    Raises UsageError for what is no number, and for an odd number of coordinates.
    """
    lanes = []
    try:
        text = load_bytes(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no list of numbers: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        with within(f"{path}, line {number}"):
            try:
                values = [float(word) for word in words]
            except ValueError as error:
                raise UsageError(f"{shown(line)}: numbers x y x y ... are needed") from error
            if len(values) % 2:
                raise UsageError(f"{len(values)} numbers: pairs x y are needed")
            points = checked_points(np.reshape(values, (-1, 2)), 2, "points")
        if len(points) > 1:
            lanes.append(ImageLane(points))
    return lanes


def write_lanes(lanes: Sequence[ImageLane]) -> str:
    """Return the text of a label or prediction file."""
    return "".join(" ".join(f"{value:.5f}" for value in lane.points.reshape(-1)) + "\n" for lane in lanes)
