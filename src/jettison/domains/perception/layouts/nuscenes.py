"""nuScenes: six cameras, a lidar, and their calibration in tables (arXiv:1903.11027; docs/schema_nuscenes.md).

```
v1.0-mini/scene.json, sample.json, sample_data.json, calibrated_sensor.json, ego_pose.json, sensor.json
v1.0-mini/splits.json                                           optional: {"train": ["scene-0061"], "val": [...]}
samples/CAM_FRONT/....jpg, samples/LIDAR_TOP/....pcd.bin        float32 x, y, z, intensity, ring in the lidar's frame
```

The dataset states its official splits nowhere but in the code of its devkit, which also reads ``splits.json`` beside
the tables. Without this file a digest of the scene's name decides: of ten scenes about eight are for training, one is
for validation, one for testing.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError, shown, unknown
from jettison.core.files import digest
from jettison.domains.perception.layouts.reading import (
    SPLITS,
    TABLE_LIMIT,
    DataFolder,
    LazyFrames,
    entry,
    lidar_depth,
    load_bytes,
    present,
    rotation_of,
    transform_of,
    within,
)
from jettison.domains.perception.scenes import Camera, Frame, Scene, View

NAME, VERSIONS = "nuScenes", "v1.0-*"
TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")
LIDAR, COLUMNS = "LIDAR_TOP", 5
SECONDS = 1e-6  # of a time stamp
SPLIT_FILE, PARTS = "splits.json", 10  # of the scenes, by a digest: part 0 is val, part 1 test, all others train

Table = Mapping[str, Mapping[str, Any]]  # token -> row


def recognizes(folder: Path) -> bool:
    """Whether the folder looks like nuScenes."""
    return any((path / "sample_data.json").is_file() for path in folder.glob(VERSIONS))


def read(
    folder: str | Path, version: str | None = None, scenes: Sequence[str] | None = None, incomplete: bool = False,
    split: str | None = None,
) -> list[Scene]:  # fmt: skip
    """Read scenes, with one frame for each sample. Names of frames are tokens of samples.

    Depth is that of the lidar's points, moved by the car's poses at both times.
    version: such as v1.0-mini; None if there is only one.
    scenes: names, such as scene-0061; None for all.
    incomplete: whether frames with missing files may be left out.
    split: train, val or test, see the head of this module; None for all.
    Raises UsageError for missing and broken files, and for rows that refer to rows that are not there.
    """
    data = DataFolder(Path(folder), NAME)
    version = _version(data, version)
    tables = {name: _table(data, version, name) for name in TABLES}
    listed = {entry(row, "name", str, f"scene {token}"): token for token, row in tables["scene"].items()}
    for name in scenes or ():
        if name not in listed:
            raise unknown("scene", name, listed, f" of {data.path}")
    if split is not None:
        chosen = _of_split(data, version, split, listed)
        scenes = [name for name in scenes or listed if name in chosen]
    by_sample: dict[str, dict[str, Mapping[str, Any]]] = {}
    for token, row in tables["sample_data"].items():
        where = f"sample_data {token}"
        if row.get("is_key_frame"):
            channel = _channel(tables, row, where)
            by_sample.setdefault(entry(row, "sample_token", str, where), {})[channel] = row
    result = []
    for name in listed if scenes is None else scenes:
        tokens = _samples(tables, listed[name])
        wanted = [
            (token, [entry(row, "filename", str, f"sample_data of {token}") for row in by_sample.get(token, {}).values()
                     if row.get("fileformat") == "jpg" or _is_lidar(row)])
            for token in tokens
        ]  # fmt: skip
        kept = [tokens[index] for index in present(data, wanted, incomplete)]
        read_frame = lambda index, kept=kept: _frame(data, tables, kept[index], by_sample.get(kept[index], {}))
        result.append(Scene(name, LazyFrames(kept, read_frame)))
    return result


def _of_split(data: DataFolder, version: str, split: str, listed: Iterable[str]) -> set[str]:
    """Return the names of the scenes of a split."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    file = f"{version}/{SPLIT_FILE}"
    if data.has(file):
        return set(map(str, entry(data.json(file), split, list, str(data.path / file))))
    part = lambda name: int(digest(name), 16) % PARTS
    return {name for name in listed if SPLITS[{0: 1, 1: 2}.get(part(name), 0)] == split}


def _is_lidar(row: Mapping[str, Any]) -> bool:
    return f"/{LIDAR}/" in str(row.get("filename"))


def _version(data: DataFolder, version: str | None) -> str:
    there = sorted(path.name for path in data.path.glob(VERSIONS) if path.is_dir())
    if version is not None:
        if version not in there:
            raise unknown("version", version, there or ["none"], f" of {data.path}")
        return version
    if len(there) != 1:
        raise UsageError(f"{data.path} has the tables {', '.join(there) or 'none'}: one folder {VERSIONS} is needed")
    return there[0]


def _table(data: DataFolder, version: str, name: str) -> Table:
    file = f"{version}/{name}.json"
    if not data.has(file):
        missing = [one for one in TABLES if not data.has(f"{version}/{one}.json")]
        count = len(TABLES) - len(missing)
        raise UsageError(f"{data.path / version} has {count} of {len(TABLES)} tables: {missing[0]}.json is missing")
    rows = data.json(file, list, TABLE_LIMIT)
    return {entry(row, "token", str, f"{data.path / file}, row {place}"): row for place, row in enumerate(rows)}


def _row(tables: Mapping[str, Table], table: str, token: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(token, str) or token not in tables[table]:
        raise UsageError(f"{where} refers to {table} {shown(token)}, which is not in {table}.json")
    return tables[table][token]


def _channel(tables: Mapping[str, Table], row: Mapping[str, Any], where: str) -> str:
    placed = _row(tables, "calibrated_sensor", row.get("calibrated_sensor_token"), where)
    return entry(_row(tables, "sensor", placed.get("sensor_token"), where), "channel", str, where)


def _samples(tables: Mapping[str, Table], scene: str) -> list[str]:
    """Return the tokens of the samples of a scene, in the order of time."""
    token, tokens = tables["scene"][scene].get("first_sample_token"), []
    while token:
        row = _row(tables, "sample", token, f"scene {scene}")
        if len(tokens) >= len(tables["sample"]):
            raise UsageError(f"scene {scene}: its samples form a circle")
        tokens.append(token)
        token = row.get("next")
    return tokens


def _frame(data: DataFolder, tables: Mapping[str, Table], token: str, rows: Mapping[str, Mapping[str, Any]]) -> Frame:
    lidar, views, poses = rows.get(LIDAR), {}, {}
    for channel, row in rows.items():
        with within(channel):
            poses[channel] = _pose(_row(tables, "ego_pose", row.get("ego_pose_token"), "sample_data"), "ego pose")
    points = None
    if lidar is not None:
        path = data.file(lidar["filename"])
        points = path, poses[LIDAR] @ _placed(tables, lidar)  # lidar to world
    for channel, row in rows.items():
        placed = _row(tables, "calibrated_sensor", row.get("calibrated_sensor_token"), channel)
        if not placed.get("camera_intrinsic"):
            continue
        with within(channel):
            sides = [entry(row, side, int, "image") for side in ("width", "height")]
            camera = Camera(channel, *sides, entry(placed, "camera_intrinsic", list, "it"), _placed(tables, row))
            depth = None
            if points is not None:
                to_camera = np.linalg.inv(poses[channel] @ camera.camera_to_ego) @ points[1]
                depth = partial(_lidar_depth, points[0], to_camera, camera)
            views[channel] = View(camera, data.file(row["filename"]), None, depth, poses[channel])
    time = entry(tables["sample"][token], "timestamp", (int, float), f"sample {token}") * SECONDS
    first = poses.get(LIDAR, next(iter(poses.values()), None))
    return Frame(token, views, time, first)


def _placed(tables: Mapping[str, Table], row: Mapping[str, Any]) -> np.ndarray:
    """Return the transform (4, 4) of a sensor to the car."""
    placed = _row(tables, "calibrated_sensor", row.get("calibrated_sensor_token"), "sample_data")
    return _pose(placed, f"calibrated_sensor {placed['token']}")


def _pose(row: Mapping[str, Any], what: str) -> np.ndarray:
    turn = rotation_of(entry(row, "rotation", list, what), f"rotation of {what}")
    return transform_of(turn, row.get("translation"), what)


def _lidar_depth(path: Path, to_camera: np.ndarray, camera: Camera) -> np.ndarray:
    data = load_bytes(path)
    if len(data) % (4 * COLUMNS):
        raise UsageError(f"{path} has {len(data):,} bytes: points of {COLUMNS} float32 are needed")
    points = np.frombuffer(data, dtype="<f4").reshape(-1, COLUMNS)[:, :3]
    return lidar_depth(points, to_camera, camera)
