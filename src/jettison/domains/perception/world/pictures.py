"""The faces of signs and traffic lights: small pictures, drawn from shapes, with coarser copies for small sizes."""

from functools import lru_cache
from itertools import pairwise

import numpy as np

SIDE = 64  # pixels of a face
BLUE, RED, WHITE, BLACK = (0.05, 0.22, 0.62), (0.82, 0.06, 0.08), (0.95, 0.95, 0.95), (0.04, 0.04, 0.04)
LAMPS = {"red": (1.0, 0.12, 0.08), "yellow": (1.0, 0.8, 0.1), "green": (0.1, 1.0, 0.45)}
# Arrows as strokes from the bottom up, in a square from -1 to 1; the head is at the end of the last stroke.
ARROWS = {
    "go_straight": ((0, -0.65), (0, 0.6)),
    "turn_left": ((0.3, -0.65), (0.3, 0.1), (-0.5, 0.1)),
    "turn_right": ((-0.3, -0.65), (-0.3, 0.1), (0.5, 0.1)),
    "u_turn": ((0.4, -0.65), (0.4, 0.35), (0.2, 0.55), (-0.15, 0.55), (-0.35, 0.35), (-0.35, -0.3)),
    "slight_left": ((0.2, -0.65), (0.2, -0.1), (-0.38, 0.48)),
    "slight_right": ((-0.2, -0.65), (-0.2, -0.1), (0.38, 0.48)),
}
FORBIDS = {"no_left_turn": "turn_left", "no_right_turn": "turn_right", "no_u_turn": "u_turn"}


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.meshgrid(axis, -axis)  # y up


def _stroke(x: np.ndarray, y: np.ndarray, a: tuple, b: tuple, half: float) -> np.ndarray:
    """Whether points are at most ``half`` from the line from a to b."""
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - ax - t * dx, y - ay - t * dy) <= half


def arrow(x: np.ndarray, y: np.ndarray, name: str, half: float = 0.13, head: float = 0.42) -> np.ndarray:
    """Return whether points of the square from -1 to 1 are inside an arrow of ``ARROWS``."""
    points = ARROWS[name]
    inside = np.zeros(x.shape, bool)
    for a, b in pairwise(points):
        inside |= _stroke(x, y, a, b, half)
    (ax, ay), (bx, by) = points[-2:]
    length = np.hypot(bx - ax, by - ay)
    tx, ty = (bx - ax) / length, (by - ay) / length
    along = (x - bx) * tx + (y - by) * ty
    across = np.abs((y - by) * tx - (x - bx) * ty)
    return inside | ((along >= 0) & (along <= head) & (across <= 0.95 * (head - along)))


def _draw(name: str, side: int) -> np.ndarray:
    x, y = _grid(side)
    image = np.zeros((side, side, 4))

    def fill(mask: np.ndarray, colour: tuple) -> None:
        image[mask, :3] = colour
        image[mask, 3] = 1

    if name in FORBIDS:
        r = np.hypot(x, y)
        fill(r <= 0.98, RED)
        fill(r <= 0.78, WHITE)
        fill(arrow(x / 0.72, y / 0.72, FORBIDS[name], 0.15) & (r <= 0.78), BLACK)
        fill(_stroke(x, y, (-0.6, 0.6), (0.6, -0.6), 0.1), RED)
    elif name in ARROWS:
        edge = np.maximum(np.abs(x), np.abs(y))
        fill(edge <= 0.98, WHITE)
        fill(edge <= 0.9, BLUE)
        fill(arrow(x / 0.85, y / 0.85, name, 0.16, 0.5), WHITE)
    elif name == "back":
        fill(np.maximum(np.abs(x), np.abs(y)) <= 0.98, (0.45, 0.46, 0.48))
    else:  # a traffic light, 1 : 2.6
        fill(np.maximum(np.abs(x), np.abs(y)) <= 1, BLACK)
        for place, lamp in zip((0.64, 0.0, -0.64), LAMPS, strict=True):
            disc = np.hypot(x / 1.0, (y - place) * 2.6 / 1.0) <= 0.72
            colour = LAMPS[lamp]
            fill(disc, colour if lamp == name else tuple(0.16 * part + 0.02 for part in colour))
    return image


@lru_cache(maxsize=64)
def face(name: str) -> tuple[np.ndarray, ...]:
    """Return the picture of a face at sides 64, 32, ..., 4: (side, side, 4) float32, colours and coverage.

    name: an attribute of OpenLane-V2; ``unknown`` is a traffic light that is off; ``back`` is the back of a sign.
    The colours are multiplied by the coverage.
    """
    large = _draw(name, 4 * SIDE)
    large[..., :3] *= large[..., 3:]
    levels = [large.reshape(SIDE, 4, SIDE, 4, 4).mean((1, 3)).astype(np.float32)]
    while len(levels[-1]) > 4:
        half = len(levels[-1]) // 2
        levels.append(levels[-1].reshape(half, 2, half, 2, 4).mean((1, 3)))
    return tuple(levels)


def paint(name: str, a: np.ndarray, b: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Return colours and coverage of a face at points, (n, 4) float32.

    a, b: (n,), from -1 to 1, to the right and up. pixel: (n,), what an image pixel covers.
    """
    levels = face(name)
    level = np.clip(np.floor(np.log2(np.maximum(pixel, 1e-6) * SIDE / 2)), 0, len(levels) - 1).astype(int)
    result = np.empty((len(a), 4), np.float32)
    for number in np.unique(level):
        these, picture = level == number, levels[number]
        side = len(picture)
        column = np.clip(((a[these] + 1) / 2 * side).astype(int), 0, side - 1)
        row = np.clip(((1 - b[these]) / 2 * side).astype(int), 0, side - 1)
        result[these] = picture[row, column]
    return result
