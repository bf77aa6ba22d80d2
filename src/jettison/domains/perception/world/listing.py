"""Writes the files that list the frames of rendered worlds, as CULane, TuSimple, OpenLane-V2 and DDAD have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from jettison.core.documents import read_json
from jettison.core.files import write_json, write_text
from jettison.domains.perception.layouts.culane import read_lanes
from jettison.domains.perception.layouts.ddad import DENSE
from jettison.domains.perception.layouts.reading import SPLITS
from jettison.domains.perception.layouts.tusimple import LABELS, at_rows
from jettison.domains.perception.world.cameras import FRONT
from jettison.domains.perception.world.order import Order, base, depth_name, split_of, stamp

LISTED = "data_dict_subset_world.json"  # which scenes and frames there are
CULANE = {"train": "train_gt.txt", "val": "val_gt.txt", "test": "test.txt"}
KINDS = {"day": "test0_normal", "rain": "test1_rain", "night": "test8_night"}  # lists of CULane's test scenes
TUSIMPLE_ROWS = 72  # rows of an image of 720 pixels, 10 pixels apart


def write_lists(folder: Path, order: Order, scenes: int) -> None:
    """Write the lists of all layouts, for scenes whose frames are all there."""
    names = {split: [scene for scene in range(scenes) if split_of(scene) == split] for split in SPLITS}
    infos = {scene: _infos(folder, order, scene) for scene in range(scenes)}
    for scene, frames in infos.items():
        _write_ddad(folder, order, scene, frames)
    for split, members in names.items():
        images = [frame["sensor"][FRONT]["image_path"] for scene in members for frame in infos[scene]]
        write_text(folder / "list" / CULANE[split], "".join(f"/{image}\n" for image in images))
        rows = [json.dumps(_tusimple(folder, image, order.size)) + "\n" for image in images]
        for place, file in enumerate(LABELS[split]):
            write_text(folder / file, "".join(rows[place :: len(LABELS[split])]))
    for weather, name in KINDS.items():
        tests = [
            frame["sensor"][FRONT]["image_path"] for scene in names["test"] for frame in infos[scene]
            if frame["meta_data"]["source_id"].endswith(weather)
        ]  # fmt: skip
        write_text(folder / "list" / "test_split" / f"{name}.txt", "".join(f"{image}\n" for image in tests))
    stamps = [f"{stamp(order, frame)}.json" for frame in range(order.frames)]
    listed = {split: {f"{scene:05d}": stamps for scene in members} for split, members in names.items()}
    write_json(folder / LISTED, listed)
    files = {
        str(number): {"filenames": [_ddad_name(scene) for scene in names[split]]} for number, split in enumerate(SPLITS)
    }
    write_json(folder / "ddad.json", {"scene_splits": files})


def _infos(folder: Path, order: Order, scene: int) -> list[dict[str, Any]]:
    paths = [folder / base(scene) / "info" / f"{stamp(order, frame)}.json" for frame in range(order.frames)]
    return [read_json(path) for path in paths]


def _tusimple(folder: Path, image: str, size: tuple[int, int]) -> dict[str, Any]:
    """A line of a label file: x of every lane at fixed rows."""
    lanes = read_lanes((folder / image).with_suffix(".lines.txt"))
    height = size[0]
    rows = [round(row * height / TUSIMPLE_ROWS) for row in range(TUSIMPLE_ROWS // 4, TUSIMPLE_ROWS)]
    rows = sorted({row for row in rows if row < height})
    return {"lanes": [at_rows(lane, rows) for lane in lanes], "h_samples": rows, "raw_file": image}


def _ddad_name(scene: int) -> str:
    return f"{base(scene)}/scene_{scene:05d}.json"


def _ddad_pose(matrix: np.ndarray) -> dict[str, dict[str, float]]:
    x, y, z, w = (float(part) for part in Rotation.from_matrix(matrix[:3, :3]).as_quat())
    place = {axis: float(value) for axis, value in zip("xyz", matrix[:3, 3], strict=True)}
    return {"rotation": {"qw": w, "qx": x, "qy": y, "qz": z}, "translation": place}


def _write_ddad(folder: Path, order: Order, scene: int, infos: list[dict[str, Any]]) -> None:
    cameras = order.rig(scene)
    keys = ("fx", "fy", "cx", "cy", "skew")
    inner = [(k[0, 0], k[1, 1], k[0, 2], k[1, 2], k[0, 1]) for k in (one.intrinsics for one in cameras.values())]
    calibration = {
        "names": list(cameras),
        "intrinsics": [dict(zip(keys, map(float, row), strict=True)) for row in inner],
        "extrinsics": [_ddad_pose(one.camera_to_ego) for one in cameras.values()],
    }
    write_json(folder / base(scene) / "calibration" / "rig.json", calibration)
    samples, data = [], []
    for number, info in enumerate(infos):
        ego, time = np.eye(4), np.datetime64(info["timestamp"], "us").item().isoformat() + "Z"
        ego[:3, :3], ego[:3, 3] = info["pose"]["rotation"], info["pose"]["translation"]
        for name, camera in cameras.items():
            image = info["sensor"][name]["image_path"]
            record = {
                "filename": image.removeprefix(f"{base(scene)}/"),
                "height": camera.height,
                "width": camera.width,
                "channels": 3,
                "pose": _ddad_pose(ego @ camera.camera_to_ego),
                "annotations": {DENSE: depth_name(image)},
            }
            identity = {"log": f"{scene:05d}", "timestamp": time, "name": name, "index": number}
            data.append({"id": identity, "key": f"{number:06d}-{name}", "datum": {"image": record}})
        keys_of = [f"{number:06d}-{name}" for name in cameras]
        samples.append({"id": {"timestamp": time}, "datum_keys": keys_of, "calibration_key": "rig"})
    write_json(folder / _ddad_name(scene), {"name": f"{scene:05d}", "samples": samples, "data": data})
