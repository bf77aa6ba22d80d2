"""Carries pixels from one rendered picture to another by their depth, to check that pictures agree.

Only still surfaces that both pictures show are compared: the four pixels around the place in the other picture must
show the same thing as the pixel that was carried there. No pixel is left out for its error.
"""

from dataclasses import dataclass

import numpy as np

from jettison.domains.perception.scenes import Camera
from jettison.domains.perception.world.render import SKY, Picture


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture, its camera, and where the car was, (4, 4)."""

    picture: Picture
    camera: Camera
    ego_to_world: np.ndarray


def lift(seen: Seen, pixels: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Return the points of the world, (n, 3), at pixels (n, 2) with depths (n,)."""
    return seen.camera.lift(pixels, depths) @ seen.ego_to_world[:3, :3].T + seen.ego_to_world[:3, 3]


def project(seen: Seen, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 2) and depths (n,) of points of the world (n, 3)."""
    to_ego = np.linalg.inv(seen.ego_to_world)
    return seen.camera.project(points @ to_ego[:3, :3].T + to_ego[:3, 3])


def _interpolated(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Values (height, width, ...) at pixels (n, 2) inside the image, linear between pixels."""
    left, top = np.floor(pixels).astype(int).T
    a, b = (pixels - np.floor(pixels)).T
    a, b = (part.reshape(-1, *[1] * (values.ndim - 2)) for part in (a, b))
    upper = values[top, left] * (1 - a) + values[top, left + 1] * a
    lower = values[top + 1, left] * (1 - a) + values[top + 1, left + 1] * a
    return upper * (1 - b) + lower * b


@dataclass(frozen=True, eq=False)
class Carried:
    """Pixels that two pictures show.

    source, target: (n, 2), the pixels in both. error: (n,) pixels, how far from its source a pixel arrives that is
    carried to the other picture and, by the depth there, back. colours: two arrays (n, 3) from 0 to 255.
    """

    source: np.ndarray
    target: np.ndarray
    error: np.ndarray
    colours: tuple[np.ndarray, np.ndarray]


def carry(source: Seen, target: Seen, moving: np.ndarray) -> Carried:
    """Carry all pixels of a picture to another one, and back.

    moving: (solids + 1,) bool, whether the thing of that number in ``Picture.things`` moves.
    """
    height, width = source.picture.depth.shape
    rows, columns = np.divmod(np.arange(height * width), width)
    things = source.picture.things.ravel()
    still = (things != SKY) & ~moving[np.maximum(things, 0)]
    pixels = np.column_stack([columns, rows])[still].astype(np.float64)
    things = things[still]
    arrived, depths = project(target, lift(source, pixels, source.picture.depth.ravel()[still].astype(np.float64)))
    with np.errstate(invalid="ignore"):
        inside = (depths > 0) & (arrived >= 0).all(1) & (arrived < np.array([width - 1, height - 1])).all(1)
    pixels, arrived, things = pixels[inside], arrived[inside], things[inside]
    left, top = np.floor(arrived).astype(int).T
    same = np.ones(len(things), bool)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        same &= target.picture.things[top + i, left + j] == things
    pixels, arrived = pixels[same], arrived[same]
    with np.errstate(divide="ignore"):
        inverse = np.where(target.picture.depth > 0, 1 / target.picture.depth.astype(np.float64), 0)
    back, _ = project(source, lift(target, arrived, 1 / np.maximum(_interpolated(inverse, arrived), 1e-6)))
    error = np.linalg.norm(back - pixels, axis=1)
    own = source.picture.image[pixels[:, 1].astype(int), pixels[:, 0].astype(int)].astype(np.float64)
    return Carried(pixels, arrived, error, (own, _interpolated(target.picture.image.astype(np.float64), arrived)))


def misalignment(source: Seen, target: Seen, moving: np.ndarray, block: int = 16) -> np.ndarray:
    """Return by how many pixels the other picture, carried to this one, is displaced, for every block (n,).

    The displacement is estimated from the images alone, by one step of Lucas and Kanade in each textured block of
    ``block`` x ``block`` pixels that both pictures show. So it notices wrong depths, poses and calibrations.
    """
    height, width = source.picture.depth.shape
    carried = carry(source, target, moving)
    columns, rows = carried.source.astype(int).T
    own = source.picture.image.astype(np.float64).mean(2)
    difference, seen = np.zeros((height, width)), np.zeros((height, width), bool)
    difference[rows, columns] = carried.colours[1].mean(1) - own[rows, columns]
    seen[rows, columns] = True
    by_y, by_x = np.gradient(own)
    parts = np.stack([by_x * by_x, by_x * by_y, by_y * by_y, by_x * difference, by_y * difference, seen])
    parts = parts[:, : height // block * block, : width // block * block]
    xx, xy, yy, xd, yd, share = (
        parts.reshape(6, height // block, block, width // block, block).sum((2, 4)).reshape(6, -1)
    )
    weakest = (xx + yy) / 2 - np.sqrt((xx - yy) ** 2 / 4 + xy**2)  # the smaller eigenvalue of the structure tensor
    good = (share == block * block) & (weakest > 4.0 * block * block)
    xx, xy, yy, xd, yd = (part[good] for part in (xx, xy, yy, xd, yd))
    determinant = xx * yy - xy * xy
    return np.hypot((yy * xd - xy * yd) / determinant, (xx * yd - xy * xd) / determinant)
