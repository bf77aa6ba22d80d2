"""OpenLane-V2: surround cameras with centerlines, traffic elements and their topology (arXiv:2304.10440).

```
data_dict_subset_A.json, ...                 {"train": {"00000": ["315970276749927222.json", ...]}, "val": ...}
train/00000/info/315970276749927222.json     sensors, pose, annotation; -ls.json: lane segments, with their lines
train/00000/image/ring_front_center/315970276749927222.jpg
```

The devkit turns these files into pickles, and its submissions are pickles. We read the JSON files; ``read_results``
reads a submission that was saved as JSON, with "split/segment/timestamp" in place of the tuple of these three.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError, shown, unknown
from jettison.domains.perception.layouts.reading import (
    SPLITS,
    DataFolder,
    LazyFrames,
    entry,
    image_size,
    load_json,
    present,
    transform_of,
    within,
)
from jettison.domains.perception.scenes import Camera, Centerline, Frame, LaneLine, Road, Scene, TrafficElement, View

NAME, DICTIONARY = "OpenLane-V2", "data_dict_"
LINES = ("none", "solid", "dashed")  # numbers of line types in the files
RESULTS_LIMIT = 1 << 31  # bytes
KEYS = {
    False: ("lane_centerline", "topology_lclc", "topology_lcte"),
    True: ("lane_segment", "topology_lsls", "topology_lste"),
}


def recognizes(folder: Path) -> bool:
    """Whether the folder looks like OpenLane-V2."""
    return any(folder.glob(f"{DICTIONARY}*.json")) or any(folder.glob("*/*/info/*.json"))


def read(
    folder: str | Path,
    split: str = "val",
    subset: str | None = None,
    incomplete: bool = False,
    images: bool = True,
    segments: bool = False,
) -> list[Scene]:
    """Read the segments of a split, a scene each. Names of frames are "split/segment/timestamp".

    subset: A, B, or another XXX of data_dict_subset_XXX.json; None if there is one such file, or none at all: then
        all files of the split are read.
    incomplete: whether frames with missing files, and cameras without an image, may be left out.
    images: whether the images are needed. Without them views have no camera, since the files do not state its size.
    segments: whether to read lane segments (-ls.json), which have the lines beside the centerlines.
    Raises UsageError for missing files, and (when a frame is read) for broken ones.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    data = DataFolder(Path(folder), NAME)
    listed = _listed(data, split, subset)
    ending = "-ls.json" if segments else ".json"
    infos = {
        f"{split}/{segment}/{time}": f"{split}/{segment}/info/{time}{ending}"
        for segment, times in listed.items()
        for time in times
    }
    needed = lambda name: [infos[name]] + [f"{name.rpartition('/')[0]}/image"] * images
    names = list(infos)
    kept = [names[index] for index in present(data, [(name, needed(name)) for name in names], incomplete)]
    by_segment: dict[str, list[str]] = {}
    for name in kept:
        by_segment.setdefault(name.split("/")[1], []).append(name)
    read_frame = lambda name: _frame(data, name, infos[name], images, segments, incomplete)
    return [
        Scene(segment, LazyFrames(names, lambda index, names=names: read_frame(names[index])))
        for segment, names in by_segment.items()
    ]


def _listed(data: DataFolder, split: str, subset: str | None) -> dict[str, list[str]]:
    """Return segment -> timestamps of a split."""
    dictionaries = sorted(path.name for path in data.path.glob(f"{DICTIONARY}*.json"))
    if subset is not None:
        wanted = [f"{DICTIONARY}subset_{subset}.json", f"{DICTIONARY}{subset}.json"]
        if not set(wanted) & set(dictionaries):
            raise UsageError(f"{data.path} has no {wanted[0]}; there: {', '.join(dictionaries) or 'none'}")
        dictionaries = [name for name in wanted if name in dictionaries][:1]
    if len(dictionaries) > 1:
        raise UsageError(f"{data.path} has {', '.join(dictionaries)}: name one as subset, such as A")
    if not dictionaries:
        infos = sorted(data.path.glob(f"{split}/*/info/*.json"))
        times: dict[str, set[str]] = {}
        for path in infos:
            times.setdefault(path.parts[-3], set()).add(path.stem.removesuffix("-ls"))
        if not times:
            raise UsageError(f"{data.path} has neither {DICTIONARY}*.json nor {split}/SEGMENT/info/TIMESTAMP.json")
        return {segment: sorted(stamps) for segment, stamps in times.items()}
    where = str(data.path / dictionaries[0])
    splits = data.json(dictionaries[0])
    if split not in splits:
        raise UsageError(f"{where} has no split {split!r}; there: {', '.join(map(str, splits))}")
    segments = entry(splits, split, dict, where)
    for segment, stamps in segments.items():
        if not isinstance(stamps, list) or not all(isinstance(stamp, str) for stamp in stamps):
            raise UsageError(f"{where} has {segment} = {shown(stamps)}: a list of names TIMESTAMP.json is needed")
    return {segment: [stamp.split(".")[0] for stamp in stamps] for segment, stamps in segments.items()}


def _frame(data: DataFolder, name: str, file: str, images: bool, segments: bool, incomplete: bool) -> Frame:
    info, where = data.json(file), str(data.path / file)
    views = {}
    for camera, sensor in entry(info, "sensor", dict, where).items():
        with within(f"{where}, camera {camera}"):
            path = entry(sensor, "image_path", str, where)
            if images and (data.has(path) or not incomplete):
                views[camera] = View(_camera(camera, sensor, data.file(path)), data.file(path))
            elif not images:
                views[camera] = View()
    pose = entry(info, "pose", dict, where)
    ego = transform_of(pose.get("rotation"), pose.get("translation"), f"{where}, pose")
    digits = str(info.get("timestamp"))  # in nanoseconds (Argoverse 2) or microseconds (nuScenes)
    unit = 1e-9 if len(digits) > len("1538984233512470") else 1e-6
    time = int(digits) * unit if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    road = None
    if "annotation" in info:
        with within(where):
            road = read_road(entry(info, "annotation", dict, where), where, segments)
    return Frame(name, views, time, ego, road)


def _camera(name: str, sensor: Mapping[str, Any], image: Path) -> Camera:
    where = f"camera {name}"
    inner, outer = entry(sensor, "intrinsic", dict, where), entry(sensor, "extrinsic", dict, where)
    width, height = image_size(image)
    pose = transform_of(outer.get("rotation"), outer.get("translation"), f"extrinsics of {where}")
    return Camera(name, width, height, entry(inner, "K", list, where), pose)


def read_road(record: Mapping[str, Any], where: str, segments: bool = False) -> Road:
    """Read an annotation or a prediction of one frame. where: its name in errors.

    segments: whether it has lane segments instead of centerlines.
    Raises UsageError for missing or broken fields.
    """
    key, lane_lane, lane_element = KEYS[segments]
    lanes = [
        _lane(lane, f"{where}, {key} {index}", segments) for index, lane in enumerate(entry(record, key, list, where))
    ]
    elements = [
        _element(element, f"{where}, traffic_element {index}")
        for index, element in enumerate(entry(record, "traffic_element", list, where))
    ]
    return Road(lanes, elements, *(entry(record, name, list, where) for name in (lane_lane, lane_element)))


def _lane(record: Any, where: str, segments: bool) -> Centerline:
    with within(where):
        points = entry(record, "centerline" if segments else "points", list, where)
        sides = {}
        for side in ("left", "right") if segments else ():
            kind = entry(record, f"{side}_laneline_type", int, where)
            if kind not in range(len(LINES)):
                raise UsageError(f"{side}_laneline_type = {shown(kind)}: 0 to {len(LINES) - 1} is valid")
            sides[side] = LaneLine(entry(record, f"{side}_laneline", list, where), LINES[kind])
        junction = record.get("is_intersection_or_connector")
        return Centerline(
            _identity(record), points, _confidence(record, where), **sides,
            in_junction=junction if isinstance(junction, bool) else None,
        )  # fmt: skip


def _element(record: Any, where: str) -> TrafficElement:
    with within(where):
        category = record.get("category") if isinstance(record, dict) else None
        box, attribute = entry(record, "points", list, where), entry(record, "attribute", int, where)
        return TrafficElement(_identity(record), box, attribute, _confidence(record, where), category)


def _identity(record: Mapping[str, Any]) -> int:
    value = record.get("id", 0)
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else 0


def _confidence(record: Mapping[str, Any], where: str) -> float:
    value = entry(record, "confidence", (int, float), where) if "confidence" in record else 1.0
    if not 0 <= value <= 1:
        raise UsageError(f"confidence = {shown(value)}: a number from 0 to 1 is needed")
    return float(value)


def read_results(path: Path) -> dict[str, Road]:
    """Read a submission in JSON: {"results": {"split/segment/timestamp": {"predictions": {...}}}}.

    Returns name of the frame -> predicted road. Raises UsageError for a pickle, and for missing or broken fields,
    among them confidences.
    """
    results, roads = entry(load_json(path, dict, RESULTS_LIMIT), "results", dict, str(path)), {}
    for name, record in results.items():
        where = f"{path}, {name}"
        predictions = entry(record, "predictions", dict, where)
        with within(where):
            for key in ("lane_centerline", "traffic_element"):
                for one in entry(predictions, key, list, where):
                    entry(one, "confidence", (int, float), f"{key}")
            roads[name] = read_road(predictions, where)
        for edges in (roads[name].lane_lane, roads[name].lane_element):
            if edges.size and not ((edges >= 0) & (edges <= 1)).all():
                raise UsageError(f"{where}: edges from {edges.min():g} to {edges.max():g}: 0 to 1 is valid")
    return roads


def road_record(road: Road, confidences: bool = False) -> dict[str, Any]:
    """Return a road as the files have it. confidences: whether it is a prediction."""
    own = lambda one: {"confidence": one.confidence} if confidences else {}
    kind = lambda one: {} if one.category is None else {"category": one.category}
    edges = (np.asarray(matrix) for matrix in (road.lane_lane, road.lane_element))
    lanes, elements = (matrix.tolist() if confidences else matrix.astype(int).tolist() for matrix in edges)
    return {
        "lane_centerline": [{"id": one.id, "points": one.points.tolist(), **own(one)} for one in road.lanes],
        "traffic_element": [
            {"id": one.id, **kind(one), "attribute": one.attribute, "points": one.box.tolist(), **own(one)}
            for one in road.elements
        ],
        "topology_lclc": lanes,
        "topology_lcte": elements,
    }
