"""Makes tiny folders in the layouts of public driving datasets."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

LANES = [[[300.0, 580.0], [400, 480], [480, 400], [540, 330]], [[1200.0, 580.0], [1100, 480], [1020, 400], [960, 330]]]
ROWS = list(range(240, 720, 40))
LOOK = [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # a camera that looks ahead: its axes in the ego frame, as columns
QUATERNION = [0.5, -0.5, 0.5, -0.5]  # the same rotation
PLACE = [1.5, 0.0, 1.6]
SIZE = (40, 24)  # width, height of images with calibration
MATRIX = [[20.0, 0, 20], [0, 20.0, 12], [0, 0, 1]]
AHEAD = np.array([1.0, 0, 0])  # one metre
POINTS = np.array([[11.5, 0.0, 1.6], [21.5, 0, 1.6], [6.5, 1, 1.1], [-5, 0, 0]])  # in the ego frame


def write(path: Path, value) -> Path:
    """Write a JSON value, or a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def picture(path: Path, size=SIZE) -> None:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)


def culane(folder: Path, frames: int = 3) -> Path:
    """Make test images with two lanes each; the last one has none."""
    names = [f"driver_1/0001.MP4/{number:05d}.jpg" for number in range(frames)]
    for number, name in enumerate(names):
        picture(folder / name, (164, 59))
        lanes = LANES if number < frames - 1 else []
        text = "".join(" ".join(f"{x} {y}" for x, y in lane) + "\n" for lane in lanes)
        write(folder / name.replace(".jpg", ".lines.txt"), text)
    write(folder / "list/test.txt", "".join(f"/{name}\n" for name in names))
    write(folder / "list/test_split/test0_normal.txt", f"{names[0]}\n")
    write(folder / "list/test_split/test8_night.txt", "".join(f"{name}\n" for name in names[1:]))
    return folder


def tusimple_lines(frames: int) -> list[dict]:
    """Return the labels of images."""
    lane = [-2] + [600 + 5 * index for index in range(len(ROWS) - 1)]
    return [
        {"raw_file": f"clips/0313-1/{number}/20.jpg", "lanes": [lane, [x + 200 if x > 0 else x for x in lane]],
         "h_samples": ROWS}
        for number in range(frames)
    ]  # fmt: skip


def tusimple(folder: Path, frames: int = 2) -> Path:
    """Make a test split."""
    lines = tusimple_lines(frames)
    for line in lines:
        picture(folder / line["raw_file"])
    write(folder / "test_label.json", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def road(number: int = 0, confidence: dict | None = None) -> dict:
    """Return an annotation, or a prediction with confidences."""
    extra = confidence or {}
    lane = lambda one, y: {"id": one, "points": [[x, y, 0.0] for x in range(0, 30, 10)]} | extra
    box = {"id": 9, "category": 1, "attribute": 2, "points": [[5.0, 3.0], [9.0, 8.0]]} | extra
    return {
        "lane_centerline": [lane(1, float(number)), lane(2, 4.0 + number)],
        "traffic_element": [box],
        "topology_lclc": [[0, 1], [0, 0]],
        "topology_lcte": [[1], [0]],
    }


def openlanev2(folder: Path, frames: int = 2) -> Path:
    """Make a validation split of one segment."""
    stamps = [f"31597027674992722{number}" for number in range(frames)]
    for number, stamp in enumerate(stamps):
        image = f"val/00001/image/ring_front_center/{stamp}.jpg"
        picture(folder / image)
        sensor = {
            "image_path": image,
            "extrinsic": {"rotation": LOOK, "translation": PLACE},
            "intrinsic": {"K": MATRIX, "distortion": [0, 0, 0]},
        }
        info = {
            "timestamp": int(stamp), "sensor": {"ring_front_center": sensor}, "annotation": road(number),
            "pose": {"rotation": np.eye(3).tolist(), "translation": [100.0 + number, 5, 0]},
        }  # fmt: skip
        write(folder / f"val/00001/info/{stamp}.json", info)
    write(folder / "data_dict_subset_A.json", {"val": {"00001": [f"{stamp}.json" for stamp in stamps]}})
    return folder


def results(frames: int = 2) -> dict:
    """Return a perfect submission for ``openlanev2``."""
    names = [f"val/00001/31597027674992722{number}" for number in range(frames)]
    return {"results": {name: {"predictions": road(number, {"confidence": 1.0})} for number, name in enumerate(names)}}


def _quaternion(values) -> dict:
    return dict(zip(("qw", "qx", "qy", "qz"), values, strict=True))


def _vector(values) -> dict:
    return dict(zip("xyz", map(float, values), strict=True))


def ddad(folder: Path, frames: int = 2, dense: bool = False) -> Path:
    """Make a validation scene with a lidar at the ego frame, whose car drives 1 m between lidar and camera."""
    straight, data, samples = [1.0, 0, 0, 0], [], []
    for number in range(frames):
        time = 1000 + number
        stamp = f"2020-01-01T00:00:0{number}.500000Z"
        (folder / "000150/point_cloud/LIDAR").mkdir(parents=True, exist_ok=True)
        points = np.concatenate([POINTS + AHEAD, np.ones((len(POINTS), 1))], 1).astype(np.float32)
        np.savez(folder / f"000150/point_cloud/LIDAR/{time}.npz", data=points)
        picture(folder / f"000150/rgb/CAMERA_01/{time}.png")
        pose = lambda turn, place: {"rotation": _quaternion(turn), "translation": _vector(place)}
        image = {
            "filename": f"rgb/CAMERA_01/{time}.png", "width": SIZE[0], "height": SIZE[1],
            "pose": pose(QUATERNION, np.array(PLACE) + 51 * AHEAD), "annotations": {},
        }  # fmt: skip
        if dense:
            (folder / "000150/depth/CAMERA_01").mkdir(parents=True, exist_ok=True)
            np.savez(folder / f"000150/depth/CAMERA_01/{time}.npz", data=np.full(SIZE[::-1], 7.0, np.float32))
            image["annotations"]["6"] = f"depth/CAMERA_01/{time}.npz"
        cloud = {"filename": f"point_cloud/LIDAR/{time}.npz", "pose": pose(straight, (50, 0, 0))}
        for name, datum in (("LIDAR", {"point_cloud": cloud}), ("CAMERA_01", {"image": image})):
            data.append({"datum": datum, "id": {"name": name, "timestamp": stamp}, "key": f"{name}{number}"})
        samples.append({"calibration_key": "cal", "datum_keys": [f"LIDAR{number}", f"CAMERA_01{number}"]})
    calibration = {
        "names": ["LIDAR", "CAMERA_01"],
        "intrinsics": [{"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0}, {"fx": 20.0, "fy": 20.0, "cx": 20.0, "cy": 12.0}],
        "extrinsics": [
            {"rotation": _quaternion(straight), "translation": _vector((0, 0, 0))},
            {"rotation": _quaternion(QUATERNION), "translation": _vector(PLACE)},
        ],
    }
    write(folder / "000150/calibration/cal.json", calibration)
    write(folder / "000150/scene_x.json", {"data": data, "samples": samples})
    write(folder / "ddad.json", {"scene_splits": {"1": {"filenames": ["000150/scene_x.json"]}}})
    return folder


def nuscenes(folder: Path, frames: int = 2) -> Path:
    """Make one scene with a camera and a lidar."""
    tables = {name: [] for name in ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")}
    for name, channel, turn, place, matrix in (
        ("camera", "CAM_FRONT", QUATERNION, PLACE, MATRIX), ("lidar", "LIDAR_TOP", [1.0, 0, 0, 0], [0.0, 0, 0], []),
    ):  # fmt: skip
        tables["sensor"].append({"token": f"s-{name}", "channel": channel, "modality": name})
        tables["calibrated_sensor"].append(
            {"token": f"c-{name}", "sensor_token": f"s-{name}", "translation": place, "rotation": turn,
             "camera_intrinsic": matrix}
        )  # fmt: skip
    tables["scene"].append({"token": "scene", "name": "scene-0001", "first_sample_token": "sample0"})
    for number in range(frames):
        after = f"sample{number + 1}" if number + 1 < frames else ""
        tables["sample"].append(
            {"token": f"sample{number}", "timestamp": 1_500_000_000_000_000 + number, "next": after}
        )
        image, cloud = f"samples/CAM_FRONT/{number}.jpg", f"samples/LIDAR_TOP/{number}.pcd.bin"
        picture(folder / image)
        (folder / cloud).parent.mkdir(parents=True, exist_ok=True)
        points = np.concatenate([POINTS + AHEAD, np.zeros((len(POINTS), 2))], 1)
        (folder / cloud).write_bytes(points.astype("<f4").tobytes())
        for name, file, x in (("camera", image, 51.0), ("lidar", cloud, 50.0)):
            tables["ego_pose"].append(
                {"token": f"p-{name}{number}", "translation": [x, 0, 0], "rotation": [1, 0, 0, 0]}
            )
            tables["sample_data"].append(
                {"token": f"d-{name}{number}", "sample_token": f"sample{number}", "filename": file,
                 "ego_pose_token": f"p-{name}{number}", "calibrated_sensor_token": f"c-{name}", "is_key_frame": True,
                 "fileformat": "jpg" if name == "camera" else "pcd", "width": SIZE[0], "height": SIZE[1]}
            )  # fmt: skip
    for name, rows in tables.items():
        write(folder / f"v1.0-mini/{name}.json", rows)
    return folder


def lidar_image() -> np.ndarray:
    """Return the depth map that the lidars of ``ddad`` and ``nuscenes`` give: the point behind the first is hidden."""
    depth = np.zeros(SIZE[::-1], np.float32)
    depth[12, 20], depth[14, 16] = 10.0, 5.0
    return depth


MAKERS = {"culane": culane, "tusimple": tusimple, "openlanev2": openlanev2, "ddad": ddad, "nuscenes": nuscenes}
