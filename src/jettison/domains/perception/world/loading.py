"""Reads rendered worlds with all that is known of them: images, lanes, depth, lane segments and their topology."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, unknown
from jettison.core.journal import read_records
from jettison.domains.perception.layouts import openlanev2
from jettison.domains.perception.layouts.culane import label_name, read_lanes
from jettison.domains.perception.layouts.reading import SPLITS, LazyFrames, entry, load_depth, within
from jettison.domains.perception.scenes import Frame, Scene
from jettison.domains.perception.world.cameras import FRONT
from jettison.domains.perception.world.listing import LISTED
from jettison.domains.perception.world.order import depth_name
from jettison.domains.perception.world.store import RUN


def recognizes(folder: Path) -> bool:
    """Whether a folder holds rendered worlds."""
    return (folder / RUN).is_file()


def read(folder: str | Path, split: str | None = None) -> list[Scene]:
    """Read the scenes of a split, with images, lanes of the front camera, depth maps, lane segments and poses.

    split: train, val or test; None for all.
    Raises UsageError for a folder without rendered worlds, and for missing or broken files.
    """
    folder = Path(folder)
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not recognizes(folder) or not (folder / LISTED).is_file():
        raise UsageError(f"{folder} holds no rendered worlds: a folder that `jettison perceive world` wrote is needed")
    listed = read_json(folder / LISTED)
    scenes: list[Scene] = []
    for name in SPLITS if split is None else (split,):
        if listed.get(name):
            scenes += [_complete(folder, scene) for scene in openlanev2.read(folder, name, segments=True)]
    if not scenes:
        raise UsageError(
            f"{folder} has no scenes of the split {split!r}; of five scenes, the second is val, the third test"
        )
    return scenes


def world_size(folder: Path) -> tuple[int, int] | None:
    """Return the (height, width) of the images of rendered worlds; None for a folder that holds something else.

    Raises UsageError if the file that says so is damaged.
    """
    if not recognizes(folder):
        return None
    with within(str(folder / RUN)):
        records, _ = read_records(folder / RUN)
        run = entry(records[0] if records else None, "run", dict, "its first line")
        height, width = entry(run, "size", list, "its first line")
    return height, width


def _complete(folder: Path, scene: Scene) -> Scene:
    frames = scene.frames
    return Scene(scene.name, LazyFrames(frames.names, lambda index: _with_views(folder, frames[index])))


def _with_views(folder: Path, frame: Frame) -> Frame:
    """The frame with depth maps and lanes."""
    views = {}
    for name, view in frame.views.items():
        image = view.image.relative_to(folder).as_posix()
        lanes = read_lanes(folder / label_name(image)) if name == FRONT else None
        shape = (view.camera.height, view.camera.width)
        views[name] = replace(view, lanes=lanes, depth=partial(load_depth, folder / depth_name(image), shape))
    return replace(frame, views=views)
