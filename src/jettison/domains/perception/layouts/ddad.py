"""DDAD, in the layout of TRI's Dataset Governance Policy: six cameras and a lidar (github.com/TRI-ML/DDAD).

```
ddad.json                                 {"scene_splits": {"0": {"filenames": ["000000/scene_HASH.json"]}, "1": ...}}
000000/scene_HASH.json                    samples, and their data with poses in the world
000000/calibration/HASH.json              intrinsics, and poses of the sensors on the car
000000/rgb/CAMERA_01/TIME.png             images
000000/point_cloud/LIDAR/TIME.npz         points of the lidar in its own frame, "data": (n, 4)
000000/depth/CAMERA_01/TIME.npz           dense depth (annotation type 6), in synthetic datasets
```
"""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jettison.core.errors import UsageError, shown, unknown
from jettison.domains.perception.layouts.reading import (
    SPLITS,
    DataFolder,
    LazyFrames,
    entry,
    lidar_depth,
    load_array,
    load_depth,
    present,
    rotation_of,
    transform_of,
    within,
)
from jettison.domains.perception.scenes import Camera, Frame, Scene, View

NAME = "DDAD"
DENSE = "6"  # number of dense depth among the annotations
INDICES = ("ddad.json", "scene_dataset_v1.0.json")
LIDARS = ("LIDAR", "lidar")


class _Sensor(NamedTuple):
    """A datum: its sensor, its file from the folder of the dataset, the sensor's pose, and its record."""

    name: str
    file: str
    pose: np.ndarray  # (4, 4), sensor to world
    record: Mapping[str, Any]
    time: Any


def recognizes(folder: Path) -> bool:
    """Whether the folder looks like DDAD."""
    return any((folder / name).is_file() for name in INDICES)


def read(folder: str | Path, split: str = "val", incomplete: bool = False) -> list[Scene]:
    """Read the scenes of a split. Names of frames are "scene/number", with the number of the sample in six digits.

    Depth is the dense annotation if there is one, else the points of the lidar, moved by the poses of lidar and camera.
    incomplete: whether scenes and frames with missing files may be left out.
    Raises UsageError for missing and broken files.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    data = DataFolder(Path(folder), NAME)
    index = next((name for name in INDICES if data.has(name)), None)
    if index is None:
        raise UsageError(f"{folder} has no {' or '.join(INDICES)}, the list of its scenes")
    where, key = str(data.path / index), str(SPLITS.index(split))
    splits = entry(data.json(index), "scene_splits", dict, where)
    if key not in splits:
        valid = [SPLITS[int(one)] for one in splits if one in ("0", "1", "2")]
        raise UsageError(f"{where} has no split {split!r} ({key}); there: {', '.join(valid)}")
    files = entry(splits[key], "filenames", list, where)
    kept = [files[place] for place in present(data, [(str(file), [file]) for file in files], incomplete)]
    return [scene for file in kept if (scene := _scene(data, file, incomplete)).frames]


def _scene(data: DataFolder, file: str, incomplete: bool) -> Scene:
    base, where = file.rpartition("/")[0], str(data.path / file)
    record = data.json(file)
    rows = entry(record, "data", list, where)
    datums = {entry(row, "key", str, f"{where}, datum {place}"): row for place, row in enumerate(rows)}
    samples, parts = entry(record, "samples", list, where), []
    for place, sample in enumerate(samples):
        with within(f"{where}, sample {place}"):
            keys = entry(sample, "datum_keys", list, "it")
            lost = next((key for key in keys if not isinstance(key, str) or key not in datums), None)
            if lost is not None:
                raise UsageError(f"datum {shown(lost)} is not in the file")
            sensors = [_sensor(datums[key], base) for key in keys]
            calibration = f"{base}/calibration/{entry(sample, 'calibration_key', str, 'it')}.json"
            parts.append((f"{base}/{place:06d}", calibration, [one for one in sensors if one is not None]))
    wanted = [(name, [calibration, *(one.file for one in sensors)]) for name, calibration, sensors in parts]
    parts = [parts[place] for place in present(data, wanted, incomplete)]
    return Scene(base, LazyFrames([part[0] for part in parts], lambda place: _frame(data, *parts[place])))


def _sensor(row: Mapping[str, Any], base: str) -> _Sensor | None:
    """Return an image or a point cloud; None for other data, such as radar."""
    datum, identity = entry(row, "datum", dict, "a datum"), entry(row, "id", dict, "a datum")
    name = entry(identity, "name", str, "a datum")
    record = datum.get("image") or datum.get("point_cloud")
    if record is None:
        return None
    where = f"datum of {name}"
    return _Sensor(
        name, f"{base}/{entry(record, 'filename', str, where)}", _pose(entry(record, "pose", dict, where), where),
        record | {"is_image": "image" in datum}, identity.get("timestamp"),
    )  # fmt: skip


def _pose(record: Mapping[str, Any], what: str) -> np.ndarray:
    turn, move = entry(record, "rotation", dict, what), entry(record, "translation", dict, what)
    quaternion = [turn.get(part, 0.0) for part in ("qw", "qx", "qy", "qz")]
    return transform_of(rotation_of(quaternion, what), [move.get(axis, 0.0) for axis in "xyz"], what)


def _frame(data: DataFolder, name: str, calibration: str, sensors: list[_Sensor]) -> Frame:
    where, record = str(data.path / calibration), data.json(calibration)
    lists = [entry(record, key, list, where) for key in ("names", "intrinsics", "extrinsics")]
    if len({len(one) for one in lists}) != 1:
        raise UsageError(f"{where} has {[len(one) for one in lists]} names, intrinsics and extrinsics: as many of each")
    if not all(isinstance(label, str) for label in lists[0]):
        raise UsageError(f"{where} has names = {shown(lists[0])}: names of sensors are needed")
    known = {label: parts for label, *parts in zip(*lists, strict=True)}
    lidar = next((one for one in sensors if not one.record["is_image"] and one.name in LIDARS), None)
    views, car = {}, None
    for sensor in sensors:
        if sensor.name not in known:
            raise UsageError(f"{where} has no sensor {sensor.name!r}; there: {', '.join(map(str, known))}")
        with within(f"{where}, {sensor.name}"):
            inner, outer = known[sensor.name]
            on_car = _pose(outer, f"extrinsics of {sensor.name}")
            ego = sensor.pose @ np.linalg.inv(on_car)
            if car is None or sensor is lidar:
                car = ego
            if sensor.record["is_image"]:
                views[sensor.name] = _view(data, sensor, inner, on_car, ego, lidar)
    times = [_seconds(sensor.time) for sensor in sensors]
    return Frame(name, views, times[0] if times else None, car)


def _view(data: DataFolder, sensor: _Sensor, inner: Any, on_car: np.ndarray, ego: np.ndarray, lidar) -> View:
    sides = [entry(sensor.record, side, int, f"image of {sensor.name}") for side in ("width", "height")]
    fx, fy, cx, cy = (entry(inner, key, (int, float), "intrinsics") for key in ("fx", "fy", "cx", "cy"))
    matrix = [[fx, inner.get("skew", 0.0), cx], [0, fy, cy], [0, 0, 1]]
    camera = Camera(sensor.name, *sides, matrix, on_car)
    depth, dense = None, (sensor.record.get("annotations") or {}).get(DENSE)
    if dense is not None:
        path = data.file(f"{sensor.file.rpartition('/rgb/')[0]}/{dense}" if "/rgb/" in sensor.file else dense)
        depth = partial(load_depth, path, (camera.height, camera.width))
    elif lidar is not None:
        to_camera = np.linalg.inv(sensor.pose) @ lidar.pose
        depth = partial(_lidar_depth, data.file(lidar.file), to_camera, camera)
    return View(camera, data.file(sensor.file), None, depth, ego)


def _lidar_depth(path: Path, to_camera: np.ndarray, camera: Camera) -> np.ndarray:
    points = load_array(path, "data")
    if points.dtype.names:  # columns with names
        points = np.stack([points[axis] for axis in ("X", "Y", "Z") if axis in points.dtype.names], -1)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind != "f":
        raise UsageError(f"{path} holds {points.dtype} of shape {points.shape}: floats (points, 3 or more) are needed")
    return lidar_depth(points[:, :3], to_camera, camera)


def _seconds(stamp: Any) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
