"""Scores prediction files against the labels of a dataset folder, in the formats that the benchmarks take.

- CULane: a folder with a file ``.lines.txt`` for every image, at the image's path.
- TuSimple: a file with one JSON object a line.
- OpenLane-V2: results as JSON, see ``layouts/openlanev2.py``. Labels have 201 points a lane, and are scored with 11 of
  them, as by the devkit.
- DDAD and nuScenes: depth maps in metres, of any size; a folder with SCENE/FRAME/CAMERA.npz, .npy or .safetensors, or
  one .npz or .safetensors file with the names SCENE/FRAME/CAMERA.

A rendered world fits several layouts: the predictions then say which one is meant. Its lanes are scored in the sizes of
images that the benchmarks have (1640 x 590, 1280 x 720), so that widths and distances in pixels mean the same.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError, guarded, unknown
from jettison.core.progress import bar, say
from jettison.domains.perception.depth_files import ARCHIVES, depth_maps, frame_path
from jettison.domains.perception.layouts import culane, openlanev2, tusimple
from jettison.domains.perception.layouts.opening import WORLD, find_layout, open_scenes
from jettison.domains.perception.layouts.reading import DataFolder, LazyFrames, refuse_pickle, within
from jettison.domains.perception.scenes import Frame, Road, Scene
from jettison.domains.perception.world.loading import world_size
from jettison.metrics.culane import HEIGHT, MEAN_THRESHOLDS, WIDTH, Counts, culane_counts, mean_f1, total_counts
from jettison.metrics.depth import RANGES, DepthErrors, mean_over_cameras, resized, score_depth_map
from jettison.metrics.openlanev2 import RULES, RoadGraph, openlanev2_score
from jettison.metrics.tusimple import tusimple_image, tusimple_score

CULANE_SIZE, TUSIMPLE_SIZE = (WIDTH, HEIGHT), (1280, 720)  # width, height of the images
HEAD = 1 << 16  # bytes of a file of predictions that tell its layout
LABELLED, EVERY = 201, 20  # points of a lane in the files of OpenLane-V2; the score takes every twentieth


@dataclass(frozen=True)
class Scores:
    """The scores of predictions.

    layout: of the dataset. frames: number of those that were scored.
    columns: names of the scores. rows: name of a part (``all``, a kind of scenes, a camera) -> its scores.
    left_out: frames without any true depth, which the depth metrics cannot score.
    """

    layout: str
    frames: int
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        rows = {name: dict(zip(self.columns, row, strict=True)) for name, row in self.rows.items()}
        return {"layout": self.layout, "frames": self.frames, "scores": rows, "left_out": self.left_out}


def score(
    predictions: str | Path,
    folder: str | Path,
    layout: str | None = None,
    split: str | None = None,
    incomplete: bool = False,
    rule: str = "v2.1",
    subset: str | None = None,
    only: Collection[str] | None = None,
) -> Scores:
    """Score prediction files against a dataset folder.

    predictions: a file or folder, see the head of this module.
    layout: of the folder; None to look at its files, and for a rendered world at the predictions.
    split: train, val or test; None for test (CULane, TuSimple) or val, and for all scenes of nuScenes.
    incomplete: whether frames whose labels are missing may be left out. Predictions must be there for all others.
    rule: of the OpenLane-V2 score. subset: of OpenLane-V2, such as A.
    only: names of the frames to score; None for all.
    Raises UsageError for missing or broken labels and predictions.
    """
    name, predictions = find_layout(folder, layout), Path(predictions)
    refuse_pickle(predictions)
    if not os.path.exists(predictions):
        raise UsageError(f"predictions {predictions} do not exist: a file or folder for the layout {name} is needed")
    if name == WORLD:
        name = _meant(predictions)
        say(f"note: {folder} holds rendered worlds; the predictions are scored as those of the layout {name}")
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if name == "culane":
        return _score_culane(predictions, folder, split or "test", incomplete, only)
    if name == "tusimple":
        return _score_tusimple(predictions, folder, split or "test", incomplete, only)
    if name == "openlanev2":
        options = {"split": split or "val", "subset": subset, "images": False}
        return _score_openlanev2(
            predictions, _only(open_scenes(folder, name, incomplete=incomplete, **options), only), rule
        )
    options = {"split": split if name == "nuscenes" else split or "val"}
    return _score_depth(predictions, _only(open_scenes(folder, name, incomplete=incomplete, **options), only), name)


def _only(scenes: list[Scene], names: Collection[str] | None) -> list[Scene]:
    """Return the scenes with the frames of these names; None for all."""
    if names is None:
        return scenes
    chosen = []
    for scene in scenes:
        kept = [place for place, name in enumerate(scene.frames.names) if name in names]
        read = lambda index, kept=kept, frames=scene.frames: frames[kept[index]]
        chosen.append(Scene(scene.name, LazyFrames([scene.frames.names[place] for place in kept], read)))
    return chosen


def _meant(predictions: Path) -> str:
    """Return the layout that predictions for a rendered world are in."""
    if predictions.is_dir():
        return "culane" if next(predictions.rglob(f"*{culane.LABELS}"), None) else "ddad"
    if predictions.suffix in ARCHIVES:
        return "ddad"
    with guarded(f"{predictions} cannot be read"), open(predictions, "rb") as file:
        return "openlanev2" if b'"results"' in file.read(HEAD) else "tusimple"


def _check_folder(predictions: Path, what: str) -> None:
    if not predictions.is_dir():
        raise UsageError(f"{predictions} is a file: {what} is needed")


def _check_named(predictions: Path, wanted: Iterable[str], there: Callable[[str], bool], what: str) -> None:
    """Raise UsageError if predictions are missing."""
    names = list(wanted)
    missing = [name for name in names if not there(name)]
    if missing:
        raise UsageError(
            f"{predictions} has {len(names) - len(missing):,} of {len(names):,} predictions: {what} of {missing[0]} is "
            "missing"
        )


def _frames(scenes: Sequence[Scene], what: str) -> Iterator[tuple[Scene, Frame]]:
    """Yield the frames of all scenes, each read when it is its turn, with a progress bar."""
    with bar(what, sum(len(scene.frames) for scene in scenes)) as progress:
        for scene in scenes:
            for frame in scene.frames:
                yield scene, frame
                progress.advance()


def _score_culane(predictions: Path, folder: str | Path, split: str, incomplete: bool, only) -> Scores:
    _check_folder(predictions, "a folder with a file .lines.txt for every image")
    scenes = _only(culane.read(folder, split, incomplete, images=False), only)
    made = DataFolder(predictions, culane.NAME)
    names = scenes[0].frames.names
    _check_named(predictions, map(culane.label_name, names), made.has, "the file")
    counts: dict[str, dict[float, Counts]] = {}
    scale = _scale(folder, CULANE_SIZE)
    for _, frame in _frames(scenes, "lanes"):
        pair = frame.views[culane.CAMERA].lanes, culane.read_lanes(made.file(culane.label_name(frame.name)))
        true, guess = ([lane.points * scale for lane in lanes] for lanes in pair)
        counts[frame.name] = culane_counts(true, guess, MEAN_THRESHOLDS)
    groups = {kind: images & set(names) for kind, images in culane.kinds(folder).items()} if split == "test" else {}
    groups = {kind: images for kind, images in groups.items() if images} | {"all": set(names)}
    rows = {}
    for kind, images in groups.items():
        total = total_counts(counts[name] for name in names if name in images)
        half = total[0.5]
        rows[kind] = (half.f1, half.precision, half.recall, *map(float, half), total[0.75].f1, mean_f1(total))
    columns = ("F1", "precision", "recall", "TP", "FP", "FN", "F1@75", "mF1")
    return Scores("culane", len(names), columns, rows)


def _score_tusimple(predictions: Path, folder: str | Path, split: str, incomplete: bool, only) -> Scores:
    labels = tusimple.read_labels(DataFolder(Path(folder), tusimple.NAME), split, incomplete)
    labels = [label for label in labels if only is None or label.image in only]
    made = {lanes.image: lanes for lanes in tusimple.read_lines(predictions)}
    _check_named(predictions, (label.image for label in labels), made.__contains__, "the line")
    scores = []
    across, down = _scale(folder, TUSIMPLE_SIZE)
    for label in labels:
        guess = made[label.image]
        with within(f"{predictions}, {label.image}"):
            if len(guess.lanes) and guess.lanes.shape[1] != len(label.rows):
                raise UsageError(f"lanes have {guess.lanes.shape[1]} values for {len(label.rows)} rows")
            if guess.rows is not None and guess.rows.tolist() != label.rows.tolist():
                raise UsageError("h_samples differ from those of the label")
        scores.append(tusimple_image(label.lanes * across, guess.lanes * across, label.rows * down, guess.run_time))
    mean = tusimple_score(scores)
    columns = ("accuracy", "FP", "FN", "F1")
    return Scores("tusimple", len(labels), columns, {"all": (*mean, mean.f1)})


def _scale(folder: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Return the factors of x and y that bring a rendered world to images of a benchmark's (width, height)."""
    own = world_size(Path(folder))
    return np.ones(2) if own is None else np.array(size) / own[::-1]


def _score_openlanev2(predictions: Path, scenes: Sequence[Scene], rule: str) -> Scores:
    if predictions.is_dir():
        raise UsageError(f"{predictions} is a folder: a file of results in JSON is needed")
    made = openlanev2.read_results(predictions)
    names = [name for scene in scenes for name in scene.frames.names]
    _check_named(predictions, names, made.__contains__, "the result")
    true, guesses = [], []
    for _, frame in _frames(scenes, "frames"):
        if frame.road is None:
            raise UsageError(f"frame {frame.name} has no annotation: the split has no public labels")
        true.append(road_graph(scored_road(frame.road)))
        guesses.append(road_graph(made[frame.name]))
    result = openlanev2_score(true, guesses, rule)
    columns = ("OLS", "DET_l", "DET_t", "TOP_ll", "TOP_lt")
    row = (result.ols, result.det_l, result.det_t, result.top_ll, result.top_lt)
    return Scores("openlanev2", len(names), columns, {"all": row})


def scored_road(road: Road) -> Road:
    """Return a true road as the OpenLane-V2 score reads it: of lanes with 201 points, every twentieth, 11 in all.

    Other lanes stay as they are. The Fréchet distance depends on it: the points of a lane of 100 m are then 10 m apart,
    as those of the predictions, and not 0.5 m.
    Source: the devkit's ``preprocess.py`` (point_interval=20); its maintainers in issues 14 and 21.
    """
    thin = lambda lane: replace(lane, points=lane.points[::EVERY]) if len(lane.points) == LABELLED else lane
    return replace(road, lanes=[thin(lane) for lane in road.lanes])


def road_graph(road: Road) -> RoadGraph:
    """Return the arrays of a road that the OpenLane-V2 score reads."""
    count = len(road.elements)
    return RoadGraph(
        [lane.points for lane in road.lanes],
        np.array([element.box for element in road.elements]).reshape(count, 2, 2),
        np.array([element.attribute for element in road.elements], dtype=int),
        road.lane_lane,
        road.lane_element,
        np.array([lane.confidence for lane in road.lanes]),
        np.array([element.confidence for element in road.elements]),
    )


def _score_depth(predictions: Path, scenes: Sequence[Scene], layout: str) -> Scores:
    least, most = RANGES[layout]
    metric: dict[str, list[tuple[str, DepthErrors]]] = {"metric scale": [], "median scale": []}
    left_out: list[str] = []
    with depth_maps(predictions) as find:
        for scene, frame in _frames(scenes, "depth"):
            name = frame_path(scene, frame)
            for camera, view in frame.views.items():
                if view.depth is None:
                    continue
                true, where = view.depth(), f"{name}/{camera}"
                if not ((true > least) & (true < most)).any():
                    left_out.append(where)
                    continue
                with guarded(f"{predictions}, {where}"):
                    guess = resized(find(where), true.shape)
                    for kind, rows in metric.items():
                        errors, _ = score_depth_map(true, guess, least, most, kind == "median scale")
                        rows.append((camera, errors))
    if not metric["metric scale"]:
        raise UsageError("no frame of the dataset has a true depth: a lidar or dense depth is needed")
    rows = {}
    for kind, errors in metric.items():
        cameras, mean = mean_over_cameras(errors)
        rows |= {f"{camera}, {kind}": row for camera, row in cameras.items()} | {f"all, {kind}": mean}
    count = sum(len(scene.frames) for scene in scenes)
    return Scores(layout, count, DepthErrors._fields, {name: tuple(row) for name, row in rows.items()}, left_out)
