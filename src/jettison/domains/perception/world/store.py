"""Writes worlds to a folder that readers of OpenLane-V2, CULane, TuSimple and DDAD can read, with each image once.

```
world.jsonl                                   what was asked for; a folder holds worlds of one kind
val/00001/image/CAM_FRONT/1600000000500000.jpg
val/00001/image/CAM_FRONT/1600000000500000.lines.txt       lanes, as in CULane
val/00001/depth/CAM_FRONT/1600000000500000.npz             depth in metres
val/00001/info/1600000000500000.json, ...-ls.json          OpenLane-V2; written last: the frame is then complete
val/00001/calibration/rig.json, scene_00001.json           DDAD
data_dict_subset_world.json, list/, *label*.json, ddad.json the lists of each layout
```

Frames are independent: several processes write them, and a killed run continues. Same seed, same bytes.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.files import check_folder, write_atomic, write_json, write_text
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import LAST_SEED, check_number
from jettison.core.parallel import check_workers
from jettison.core.parallel import map as parallel_map
from jettison.core.progress import say
from jettison.domains.perception.layouts.culane import write_lanes
from jettison.domains.perception.layouts.openlanev2 import LINES, road_record
from jettison.domains.perception.layouts.reading import pillow
from jettison.domains.perception.scenes import Camera, Frame, Road, View
from jettison.domains.perception.world.cameras import FRONT
from jettison.domains.perception.world.labels import label_lanes, label_road
from jettison.domains.perception.world.listing import write_lists
from jettison.domains.perception.world.order import Order, base, stamp
from jettison.domains.perception.world.render import Picture, Renderer
from jettison.domains.perception.world.world import World, make_world

RUN = "world.jsonl"
QUALITY = 95  # of JPEG
MOST_SCENES = 100_000
VERSION = 1  # raised when the same seed gives other worlds, so that a folder does not mix them


@lru_cache(maxsize=2)
def _world(seed: int, place: str | None, weather: str | None) -> World:
    return make_world(seed, place, weather)


def render_frame(
    world: World, time: float, cameras: Mapping[str, Camera], seed: int = 0, name: str = ""
) -> tuple[Frame, dict[str, Picture]]:
    """Render one frame. Returns it with its labels, and the picture of each camera.

    seed: of the noise of the sensors. Depth maps are in the frame's views; there are no image files.
    """
    renderer = Renderer(world, time)
    pictures = {
        camera: renderer.picture(cameras[camera], seed * len(cameras) + place) for place, camera in enumerate(cameras)
    }
    lanes = label_lanes(world, time, cameras[FRONT])
    views = {
        camera: View(cameras[camera], lanes=lanes if camera == FRONT else None, depth=partial(_depth_of, picture))
        for camera, picture in pictures.items()
    }
    road = label_road(world, time, cameras[FRONT], pictures[FRONT])
    return Frame(name, views, time, world.ego_to_world(time), road), pictures


def _depth_of(picture: Picture) -> np.ndarray:
    return picture.depth


def write_world(folder: Path, order: Order, scenes: int, processes: int = 1) -> dict[str, Any]:
    """Render scenes into a folder. A run that was killed continues, and more scenes can be added.

    scenes: their number. processes: that render, on this machine.
    Returns counts: scenes, frames, and the frames that were rendered now.
    Raises UsageError if the folder holds something else, or worlds of another order.
    """
    check_number("scenes", scenes, 1, MOST_SCENES, whole=True)
    check_number("seed + scenes", order.seed + scenes - 1, 0, LAST_SEED, whole=True)
    check_workers(processes, None, "processes")
    pillow()  # refuses to start without it
    folder = Path(folder)
    _world(order.seed, order.place, order.weather)  # refuses unknown names before anything is written
    run = {
        "world": VERSION,
        **{name: getattr(order, name) for name in ("seed", "frames", "interval", "place", "weather")},
    }
    run |= {} if order.cameras == "all" else {"cameras": order.cameras}
    check_folder(folder, RUN)
    with locked(folder):
        Journal(folder / RUN, {**run, "size": list(order.size)})
        items = [(scene, frame) for scene in range(scenes) for frame in range(order.frames)]
        todo = [item for item in items if not _info(folder, *item, order).exists()]
        if len(todo) < len(items):
            say(f"{len(items) - len(todo)} of {len(items)} frames are there already")
        if todo:
            parallel_map(partial(_write_frame, folder, order), todo, processes, what="frames")
        write_lists(folder, order, scenes)
    return {"scenes": scenes, "frames": len(items), "rendered": len(todo)}


def _info(folder: Path, scene: int, frame: int, order: Order) -> Path:
    return folder / base(scene) / "info" / f"{stamp(order, frame)}.json"


def _write_frame(folder: Path, order: Order, item: tuple[int, int]) -> None:
    """Render a frame and write its files; the one that says that it is complete is the last."""
    scene, number = item
    seed, name = order.seed + scene, str(stamp(order, number))
    world, cameras = _world(seed, order.place, order.weather), order.rig(scene)
    frame, pictures = render_frame(world, number * order.interval, cameras, number, f"{base(scene)}/{name}")
    home = folder / base(scene)
    for camera, picture in pictures.items():
        write_atomic(home / "image" / camera / f"{name}.jpg", partial(_save_jpeg, picture.image))
        depth = np.round(picture.depth, 3)
        write_atomic(home / "depth" / camera / f"{name}.npz", partial(_save_depth, depth))
    lanes = frame.views[FRONT].lanes
    write_text(home / "image" / FRONT / f"{name}.lines.txt", write_lanes(lanes))
    info = _record(frame, cameras, name, scene, world)
    write_json(home / "info" / f"{name}-ls.json", info | {"annotation": _segments(frame.road)})
    write_json(home / "info" / f"{name}.json", info | {"annotation": road_record(frame.road)})


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    pillow()[0].fromarray(image).save(path, "jpeg", quality=QUALITY, subsampling=0)


def _save_depth(depth: np.ndarray, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, data=depth)


def _record(frame: Frame, cameras: Mapping[str, Camera], name: str, scene: int, world: World) -> dict[str, Any]:
    """The fields of a file of OpenLane-V2 that are not annotations."""
    pose = lambda matrix: {"rotation": matrix[:3, :3].tolist(), "translation": matrix[:3, 3].tolist()}
    sensors = {
        camera.name: {
            "image_path": f"{base(scene)}/image/{camera.name}/{name}.jpg",
            "extrinsic": pose(camera.camera_to_ego),
            "intrinsic": {"K": camera.intrinsics.tolist(), "distortion": [0.0, 0.0, 0.0]},
        }
        for camera in cameras.values()
    }
    return {
        "version": "world",
        "segment_id": f"{scene:05d}",
        "meta_data": {"source": "jettison", "source_id": f"{world.seed}: {world.place}, {world.weather}"},
        "timestamp": int(name),
        "sensor": sensors,
        "pose": pose(frame.ego_to_world),
    }


def _segments(road: Road) -> dict[str, Any]:
    """A road as lane segments, with the lines beside the lanes."""
    plain = road_record(road)
    segments = [
        {
            "id": lane.id,
            "centerline": lane.points.tolist(),
            "left_laneline": lane.left.points.tolist(),
            "left_laneline_type": LINES.index(lane.left.kind),
            "right_laneline": lane.right.points.tolist(),
            "right_laneline_type": LINES.index(lane.right.kind),
            "is_intersection_or_connector": lane.in_junction,
        }
        for lane in road.lanes
    ]  # fmt: skip
    return {
        "lane_segment": segments,
        "traffic_element": plain["traffic_element"],
        "area": [],
        "topology_lsls": plain["topology_lclc"],
        "topology_lste": plain["topology_lcte"],
    }
