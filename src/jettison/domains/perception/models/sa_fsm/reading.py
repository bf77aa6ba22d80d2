"""What the depth network reads of a frame, and what it learns from: images, calibration, matches, the frames around."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.domains.perception.images import view_pixels
from jettison.domains.perception.modelling import Sample
from jettison.domains.perception.scenes import Frame, Scene, View
from jettison.domains.perception.surround.matching import Table, depth_map, slots_of, there
from jettison.domains.perception.surround.occlusion import usable_pixels
from jettison.domains.perception.surround.rig import resized_intrinsics, yaw_of
from jettison.graph.own_models import OwnConfig

MOMENTS = (-1, 1)  # frames around, in steps
MOST = 12  # frames of a drive that show which pixels are of the own car
MOVED = 0.3  # metres between such frames, at least


def read(config: OwnConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """Return ``pixels``, ``focal``, ``yaw`` and ``present`` of the ring of cameras, see ``SaFsm.compute``.

    A camera that is missing, or whose image is, is black and not present; a note says so once.
    """
    slots = slots_of(sample.frame, config.views)
    pixels = torch.zeros(config.views, 3, config.height, config.width)
    focal, yaw, present = torch.full((config.views,), float(config.focal)), *torch.zeros(2, config.views)
    for slot, view in enumerate(slots):
        if view is None:
            continue
        focal[slot], yaw[slot] = view.camera.intrinsics[0, 0] / view.camera.width, yaw_of(view.camera)
        if there(view):
            pixels[slot], present[slot] = view_pixels(view, config.height, config.width), 1
    if not present.all():
        lost = [slot + 1 if view is None else view.camera.name for slot, view in enumerate(slots) if not there(view)]
        if len(lost) == len(slots):
            raise UsageError(f"frame {sample.frame.name} has no image of any camera")
        _warn(tuple(map(str, lost)), config.views)
    return {"pixels": pixels, "focal": focal, "yaw": yaw, "present": present}


@lru_cache(maxsize=256)
def _warn(lost: tuple[str, ...], views: int) -> None:
    """Say which cameras are missing; once, as the result is cached."""
    say(
        f"note: of {views} cameras around the ring, {', '.join(lost)} are missing in some frames; the network sees "
        "black there, and depth beside them is less sure"
    )


def pseudo_depth(config: OwnConfig, sample: Sample, table: Table) -> dict[str, torch.Tensor]:
    """Return ``pseudo``, the depths of matches, (views, height, width), 0 where there are none."""
    slots = slots_of(sample.frame, config.views)
    return {"pseudo": depth_map(table, slots, config.height, config.width)}


def surroundings(config: OwnConfig, sample: Sample, usable: "Usable") -> dict[str, torch.Tensor]:
    """Return what photometric losses need beside the inputs of a frame.

    around: (2, views, 3, height, width) uint8, the frames before and after. moments: (2,), 1 where there is one.
    intrinsics: (views, 3, 3). poses: (views, 4, 4), camera to ego. usable: (views, height, width) bool, pixels that
    show no part of the own car; none of a camera whose image is missing.
    """
    size = (config.height, config.width)
    slots = slots_of(sample.frame, config.views)
    around = torch.zeros(len(MOMENTS), config.views, 3, *size, dtype=torch.uint8)
    moments = torch.zeros(len(MOMENTS))
    for place, step in enumerate(MOMENTS):
        frame = sample.other(step)
        images = None if frame is None else [_same(frame, view) for view in slots]
        if images is None or any(image is None for image, view in zip(images, slots, strict=True) if there(view)):
            continue
        moments[place] = 1
        for slot, view in enumerate(images):
            if view is not None:
                around[place, slot] = (view_pixels(view, *size) * 255).round().to(torch.uint8)
    intrinsics, poses = torch.eye(3).repeat(config.views, 1, 1), torch.eye(4).repeat(config.views, 1, 1)
    for slot, view in enumerate(slots):
        if view is not None:
            intrinsics[slot] = torch.from_numpy(resized_intrinsics(view.camera, *size))
            poses[slot] = torch.from_numpy(view.camera.camera_to_ego)
    mask = torch.stack([usable(sample.scene, view if there(view) else None) for view in slots])
    return {"around": around, "moments": moments, "intrinsics": intrinsics, "poses": poses, "usable": mask}


def _same(frame: Frame, view: View | None) -> View | None:
    """The view of the same camera in another frame; None if it or its image is missing."""
    other = None if view is None else frame.views.get(view.camera.name)
    return other if there(other) else None


Usable = Callable[[Scene, View | None], torch.Tensor]


def usable_of(config: OwnConfig) -> Usable:
    """Return a function that tells which pixels of a camera show no part of the own car, (height, width) bool.

    It looks at frames of the drive, once for every drive and camera.
    """
    known: dict[tuple[str, str], torch.Tensor] = {}

    def usable(scene: Scene, view: View | None) -> torch.Tensor:
        if view is None:
            return torch.zeros(config.height, config.width, dtype=torch.bool)
        key = (scene.name, view.camera.name)
        if key not in known:
            known.update({(scene.name, name): mask for name, mask in _masks(config, scene).items()})
        return known.get(key, torch.ones(config.height, config.width, dtype=torch.bool))

    return usable


def _masks(config: OwnConfig, scene: Scene) -> Mapping[str, torch.Tensor]:
    count, images, place = len(scene.frames), {}, None
    for index in range(min(MOST, count)):
        frame = scene.frames[index * count // min(MOST, count)]
        if frame.ego_to_world is not None:
            now = frame.ego_to_world[:3, 3]
            if place is not None and np.linalg.norm(now - place) < MOVED:
                continue
            place = now
        for name, view in frame.views.items():
            if there(view):
                pixels = view_pixels(view, config.height, config.width).permute(1, 2, 0)
                images.setdefault(name, []).append((pixels * 255).numpy().astype(np.uint8))
    return {name: torch.from_numpy(usable_pixels(parts)) for name, parts in images.items()}
