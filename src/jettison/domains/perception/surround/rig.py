"""The ring of cameras around a car, from the calibration alone: their order, gaps, neighbours and overlaps.

- The ring runs clockwise, seen from above, and begins with the camera that looks ahead. Names play no part.
- A ring has a fixed number of slots. Where a camera is missing, its slot is empty: the one in the widest gap.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jettison.core.errors import UsageError
from jettison.domains.perception.scenes import Camera

DEPTHS = (2.0, 5.0, 15.0, 60.0, 200.0)  # metres at which overlaps are looked for
ROWS = (0.2, 0.4, 0.6, 0.8)  # shares of the height
MARGIN = 0.03  # of the width: a strip is as much wider on both sides
TURN = 2 * np.pi


def yaw_of(camera: Camera) -> float:
    """Return the direction in which a camera looks, seen from above: radians, 0 ahead, positive to the left."""
    x, y = camera.camera_to_ego[:2, 2]
    return float(np.arctan2(y, x))


def ring(cameras: Mapping[str, Camera], slots: int) -> list[str | None]:
    """Return the names of cameras in the order of the ring; None for a slot without a camera.

    slots: their number. The first one is for the camera that looks ahead.
    Raises UsageError for more cameras than slots, and for none.
    """
    if not 1 <= len(cameras) <= slots:
        raise UsageError(f"{len(cameras)} cameras ({', '.join(cameras)}): from 1 to {slots} are needed")
    places: list[tuple[float, str | None]] = [
        ((TURN / slots / 2 - yaw_of(camera)) % TURN, name) for name, camera in cameras.items()
    ]
    places.sort(key=lambda place: place[0])
    while len(places) < slots:
        ends = [place for place, _ in places]
        gaps = [after - before for before, after in zip(ends, [*ends[1:], ends[0] + TURN], strict=True)]
        widest = int(np.argmax(gaps))
        places.append(((ends[widest] + gaps[widest] / 2) % TURN, None))
        places.sort(key=lambda place: place[0])
    return [name for _, name in places]


def overlap(camera: Camera, other: Camera) -> tuple[int, int] | None:
    """Return the columns (first, last + 1) of a camera's image that another camera also sees; None if there are none.

    A column counts if a point on one of some rows, at one of some depths, lies in the other image.
    """
    columns = np.arange(camera.width)
    rows = np.array(ROWS) * (camera.height - 1)
    x, y, depth = (part.ravel() for part in np.meshgrid(columns, rows, DEPTHS, indexing="ij"))
    pixels, ahead = other.project(camera.lift(np.column_stack([x, y]), depth))
    with np.errstate(invalid="ignore"):
        inside = (ahead > 0) & (pixels >= 0).all(1) & (pixels <= (other.width - 1, other.height - 1)).all(1)
    seen = np.flatnonzero(inside.reshape(camera.width, -1).any(1))
    if not len(seen):
        return None
    margin = round(MARGIN * camera.width)
    return max(0, int(seen[0]) - margin), min(camera.width, int(seen[-1]) + 1 + margin)


def neighbours(cameras: Sequence[Camera | None]) -> list[tuple[int, int]]:
    """Return the slots of neighbours (i, i + 1 around the ring) that are both there and see something in common."""
    count = len(cameras)
    pairs = []
    for one in range(count if count > 2 else count - 1):
        other = (one + 1) % count
        camera, beside = cameras[one], cameras[other]
        if camera is not None and beside is not None and overlap(camera, beside) and overlap(beside, camera):
            pairs.append((one, other))
    return pairs


def resized_intrinsics(camera: Camera, height: int, width: int) -> np.ndarray:
    """Return the intrinsics (3, 3) of a camera whose images are resized. Pixel 0 has its centre at 0."""
    scale = np.array([width / camera.width, height / camera.height, 1.0])
    matrix = camera.intrinsics.copy()
    matrix[:2, 2] += 0.5
    matrix *= scale[:, None]
    matrix[:2, 2] -= 0.5
    return matrix
