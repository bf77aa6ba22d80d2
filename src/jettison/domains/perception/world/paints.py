"""The colours of solid things: windows of houses, wheels and lights of cars, leaves, faces of signs."""

import numpy as np

from jettison.domains.perception.world import noise, pictures
from jettison.domains.perception.world.ground import cover, stripes
from jettison.domains.perception.world.solids import Board, Solid

BAY, STOREY = 2.7, 3.0  # metres from window to window
WINDOW = (1.35, 1.5)  # metres, width and height
WHEEL = 0.33  # metres, radius
WALL = ((0.08, 0.09), (0.18, 0.11), (0.42, 0.12), (1.3, 0.1), (4.0, 0.08))
LEAF = ((0.07, 0.25), (0.16, 0.32), (0.4, 0.34), (1.1, 0.25))
GLASS = np.array([0.07, 0.09, 0.12], np.float32)
RED, WARM = np.array([0.9, 0.06, 0.04], np.float32), np.array([1.0, 0.93, 0.78], np.float32)
Colours = tuple[np.ndarray, np.ndarray]


def paint(solid: Solid, point: np.ndarray, normal: np.ndarray, pixel: np.ndarray, night: bool) -> Colours:
    """Return the colours (n, 3) of points of a solid without light, and the light that they give themselves (n, 3).

    point: (n, 3), in its axes from -1 to 1. normal: (n, 3), in its axes. pixel: (n,) metres that a pixel covers.
    night: whether lights are on.
    """
    return PAINTS[solid.paint](solid, point, normal, pixel, night)


def _random(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """A number from 0 to 1 for every pair of whole numbers."""
    value = np.sin(a * 12.9898 + b * 78.233 + (seed % 997) * 0.731) * 43758.547
    return value - np.floor(value)


def _faces(solid: Solid, point: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metres to the right and up on the face of a box, and whether the face is a wall."""
    metres = point * solid.half.astype(np.float32)
    on_x = np.abs(normal[:, 0]) > 0.5
    wall = np.abs(normal[:, 2]) < 0.5
    a = np.where(on_x, metres[:, 1], metres[:, 0])
    b = np.where(wall, metres[:, 2], metres[:, 1])
    return a, b, wall


def _building(solid: Solid, point, normal, pixel, night) -> Colours:
    a, b, wall = _faces(solid, point, normal)
    side = np.where(np.abs(normal[:, 0]) > 0.5, 31.0, 0.0) + np.sign(normal[:, 0] + normal[:, 1]) * 7
    grain = noise.texture(a + side + solid.seed % 61, b + solid.seed % 37, pixel, WALL, 50)
    colour = np.array(solid.colour, np.float32) * (1 + grain)[:, None]
    up = b + solid.half[2].item() - 0.5
    column, row = np.floor(a / BAY), np.floor(up / STOREY)
    width = np.maximum(pixel, 1e-3)
    across = np.clip(cover(np.mod(a, BAY), width, (BAY - WINDOW[0]) / 2, (BAY + WINDOW[0]) / 2), 0, 1)
    along = np.clip(cover(np.mod(up, STOREY), width, 0.9, 0.9 + WINDOW[1]), 0, 1)
    glass = across * along * wall
    bars = np.maximum(stripes(a - 0.04, width, BAY / 2, 0.08), stripes(up - 0.3, width, STOREY, 0.08))
    colour *= (1 - 0.3 * stripes(up - 0.05, width, STOREY, 0.12) * wall)[:, None]
    lot = _random(column + side, row, solid.seed)
    pane = GLASS + (0.28 * lot**2)[:, None] + (0.45 * bars)[:, None]
    colour = colour * (1 - glass[:, None]) + pane * glass[:, None]
    glow = np.zeros_like(colour)
    if night:
        glow = (glass * (lot > 0.68) * (0.35 + 0.5 * lot) * (1 - bars))[:, None] * WARM
    return colour, glow


def _wall(solid: Solid, point, normal, pixel, night) -> Colours:
    a, b, _ = _faces(solid, point, normal)
    grain = noise.texture(a + solid.seed % 61, b + solid.seed % 37, pixel, WALL, 80)
    colour = np.array(solid.colour, np.float32) * (1 + 1.6 * grain)[:, None]
    return colour, np.zeros_like(colour)


def _vehicle(solid: Solid, point, normal, pixel, night) -> Colours:
    metres = point * solid.half.astype(np.float32)
    sheen = 1 + 0.08 * point[:, 2] + 0.05 * noise.sample(metres[:, 0] + metres[:, 1], metres[:, 2], 0.5, 3)
    colour = np.array(solid.colour, np.float32) * sheen[:, None]
    glow = np.zeros_like(colour)
    side, end = np.abs(normal[:, 1]) > 0.5, np.abs(normal[:, 0]) > 0.5
    up = metres[:, 2] + solid.half[2].item()
    if solid.paint == "car" or solid.paint == "truck":
        radius = WHEEL if solid.paint == "car" else 0.5
        for place in (-0.62, 0.64):
            away = np.hypot(metres[:, 0] - place * solid.half[0].item(), up - 0.18)
            tyre = np.clip(0.5 + (radius - away) / np.maximum(pixel, 1e-3), 0, 1) * side
            rim = np.clip(0.5 + (0.58 * radius - away) / np.maximum(pixel, 1e-3), 0, 1) * side
            colour = colour * (1 - tyre[:, None]) + 0.05 * tyre[:, None]
            colour = colour * (1 - rim[:, None]) + 0.42 * rim[:, None]
        colour *= (1 - 0.6 * ((up < 0.14) & (side | end)))[:, None]
    if solid.paint == "cabin":
        pane = (side | end) & (np.abs(point[:, 2]) < 0.82) & (np.abs(point[:, 1]) < 0.9 + 0.2 * side)
        pane &= ~side | (np.abs(np.abs(point[:, 0]) - 0.02) > 0.05) & (np.abs(point[:, 0]) < 0.9)
        colour = np.where(pane[:, None], GLASS * (1.6 + point[:, 2:]), colour)
        return colour, glow
    height = 0.62 if solid.paint == "car" else 0.2
    wide, tall = (0.17, 0.14) if solid.paint == "car" else (0.1, 0.05)
    lamp = np.abs(up / (2 * solid.half[2].item()) - height) < tall
    lamp &= end & (np.abs(np.abs(point[:, 1]) - 0.82) < wide)
    rear = normal[:, 0] < 0
    shine = np.where(rear[:, None], RED, WARM)
    colour = np.where(lamp[:, None], shine * 0.8, colour)
    plate = end & (np.abs(metres[:, 1]) < 0.27) & (np.abs(up - 0.3) < 0.07)
    colour = np.where(plate[:, None], np.float32(0.85), colour)
    if night:
        glow = np.where(lamp[:, None], shine, np.float32(0))
    return colour, glow


def _post(solid: Solid, point, normal, pixel, night) -> Colours:
    a, b, _ = _faces(solid, point, normal)
    colour = np.array(solid.colour, np.float32) * (1 + noise.texture(a, b, pixel, ((0.3, 0.12),), 60))[:, None]
    return colour, np.zeros_like(colour)


def _leaves(solid: Solid, point, normal, pixel, night) -> Colours:
    metres = point * solid.half.astype(np.float32)
    around = np.arctan2(point[:, 1], point[:, 0]) * solid.half[0].item()
    grain = noise.texture(around + solid.seed % 83, 1.3 * metres[:, 2], pixel, LEAF, 70)
    dark = 0.8 + 0.3 * point[:, 2]
    colour = np.array(solid.colour, np.float32) * (np.maximum(1 + grain, 0.15) * dark)[:, None]
    return colour, np.zeros_like(colour)


def _board(solid: Board, point, normal, pixel, night) -> Colours:
    size = pixel / solid.half[1:].min().item()
    shown = pictures.paint(solid.face, point[:, 1], point[:, 2], size)
    front = (normal[:, 0] > 0)[:, None]
    colour = np.where(front, shown[:, :3], np.float32(0.16))
    light = solid.face in pictures.LAMPS
    bright = colour.max(1, keepdims=True) if len(colour) else colour[:, :1]
    glow = np.where(front & (bright > 0.45), colour * (0.75 if light else 0.25 * night), np.float32(0))
    return colour, glow.astype(np.float32)


PAINTS = {
    "building": _building, "car": _vehicle, "cabin": _vehicle, "truck": _vehicle, "post": _post, "trunk": _post,
    "wall": _wall, "leaves": _leaves, "board": _board,
}  # fmt: skip
