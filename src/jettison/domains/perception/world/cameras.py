"""The six cameras of the car: front, front left, front right, back, back left, back right.

Names and places are those of nuScenes. Neighbours overlap by about 16 degrees. The back camera has 94 degrees, not 110,
so that features of its sides are less distorted and can be matched.
"""

import numpy as np

from jettison.core.errors import UsageError, shown
from jettison.domains.perception.scenes import Camera

FRONT = "CAM_FRONT"
# Name -> yaw in degrees, place on the car in metres (x forward, y left, z up), horizontal field of view in degrees.
MOUNTS = {
    FRONT: (0, (1.7, 0.0, 1.52), 70),
    "CAM_FRONT_RIGHT": (-55, (1.5, -0.5, 1.51), 72),
    "CAM_BACK_RIGHT": (-112, (1.0, -0.5, 1.54), 76),
    "CAM_BACK": (180, (0.0, 0.0, 1.56), 94),
    "CAM_BACK_LEFT": (112, (1.0, 0.5, 1.54), 76),
    "CAM_FRONT_LEFT": (55, (1.5, 0.5, 1.51), 72),
}
NAMES = tuple(MOUNTS)  # clockwise from above, so that neighbours overlap, and the last one with the first
HORIZON = 0.42  # share of the image above the horizon
SMALLEST, LARGEST = 16, 2048  # pixels of a side
TO_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # columns: right, down, forward


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of ``HEIGHTxWIDTH``. Raises UsageError if it is not valid."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise UsageError(f"size {shown(text)}: height and width in pixels are needed, such as 160x400")
    return checked_size((int(sides[0]), int(sides[1])))


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width). Raises UsageError if a side is too small or too large."""
    if not all(isinstance(side, int) and SMALLEST <= side <= LARGEST for side in size):
        raise UsageError(f"size {size[0]}x{size[1]}: sides from {SMALLEST} to {LARGEST:,} pixels are needed")
    return size


def make_rig(size: tuple[int, int], seed: int | None = None) -> dict[str, Camera]:
    """Return the cameras.

    size: (height, width) of all images.
    seed: mounts them as a factory does, up to 1 degree, 3 cm and 2 percent of the focal length off; None: exactly.
    """
    height, width = checked_size(size)
    rng = None if seed is None else np.random.default_rng([20240405, seed])
    off = lambda scale, count: np.zeros(count) if rng is None else rng.uniform(-scale, scale, count)
    cameras = {}
    for name, (yaw, place, view) in MOUNTS.items():
        focal = width / 2 / np.tan(np.radians(view) / 2) * (1 + off(0.02, 1)[0])
        centre = np.array([(width - 1) / 2, (height - 1) * HORIZON]) * (1 + off(0.01, 2))
        intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = _turned(np.radians((yaw, 0, 0)) + np.radians(off(1.0, 3))) @ TO_CAMERA
        pose[:3, 3] = np.asarray(place) + off(0.03, 3)
        cameras[name] = Camera(name, width, height, intrinsics, pose)
    return cameras


def _turned(angles: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) by yaw, then pitch, then roll, in radians."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(angles), np.sin(angles)
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    pitch = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    roll = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return yaw @ pitch @ roll
