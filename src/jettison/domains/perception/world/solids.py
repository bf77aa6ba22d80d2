"""Solid things of the world: boxes (buildings, cars, posts), balls (trees) and boards (signs, lights), hit by rays."""

from dataclasses import dataclass, field

import numpy as np

Hit = tuple[np.ndarray, np.ndarray, np.ndarray]
NEAR = 0.05  # metres in front of a camera; nearer things are not seen


@dataclass(frozen=True, eq=False)
class Solid:
    """A thing at a place, turned about the vertical.

    centre: (3,) metres. half: (3,) half its length, width and height. yaw: radians.
    paint: how it is coloured: building, wall, car, cabin, truck, post, trunk, leaves, board.
    colour: (3,), 0 to 1. seed: of its details. moving: whether it moves with time. key: number of the thing it belongs
    to, such as that of a traffic element; -1 for none.
    """

    centre: np.ndarray
    half: np.ndarray
    yaw: float = 0.0
    paint: str = "building"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    seed: int = 0
    moving: bool = False
    key: int = -1
    axes: np.ndarray = field(init=False, repr=False)  # (3, 3), its directions as rows

    def __post_init__(self):
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        object.__setattr__(self, "axes", np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]))
        object.__setattr__(self, "centre", np.asarray(self.centre, dtype=np.float64))
        object.__setattr__(self, "half", np.asarray(self.half, dtype=np.float64))

    @property
    def radius(self) -> float:
        """Radius of a ball around it."""
        return float(np.linalg.norm(self.half))

    def corners(self) -> np.ndarray:
        """Return the eight corners (8, 3) of the box around it."""
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(8, 3)
        return self.centre + (signs * self.half) @ self.axes

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> Hit:
        """Return where rays meet it first.

        origin: (3,). rays: (n, 3) float32 directions.
        Returns the parameter along the ray (n,), infinite without a hit; the point in own axes (n, 3), from -1 to 1;
        and the outer normal there, in own axes (n, 3).
        """
        start, towards = self._own(origin, rays)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1.0 / towards
            low, high = (-1.0 - start) * inverse, (1.0 - start) * inverse
        first, last = np.minimum(low, high), np.maximum(low, high)
        axis = first.argmax(1)
        enter, leave = first.max(1), last.min(1)
        t = np.where((enter < leave) & (enter > NEAR), enter, np.inf)
        normal = np.zeros_like(towards)
        rows = np.arange(len(rays))
        normal[rows, axis] = -np.sign(towards[rows, axis])
        return self._result(t, start, towards, normal)

    def _own(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ray in own axes, scaled so that the solid reaches from -1 to 1."""
        scaled = (self.axes / self.half[:, None]).T  # (3, 3)
        start = ((origin - self.centre) @ scaled).astype(np.float32)
        return start, rays @ scaled.astype(np.float32)

    @staticmethod
    def _result(t: np.ndarray, start: np.ndarray, towards: np.ndarray, normal: np.ndarray) -> Hit:
        point = start + np.where(np.isfinite(t), t, 0)[:, None] * towards
        return t, point, normal

    def blocks(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, sun: np.ndarray) -> np.ndarray:
        """Return whether points (n,) are in its shadow. sun: (3,), the direction to the sun."""
        points = np.column_stack([x, y, z]).astype(np.float32) - self.centre.astype(np.float32)
        scaled = (self.axes / self.half[:, None]).T.astype(np.float32)
        start, towards = points @ scaled, (sun @ scaled).astype(np.float32)
        return self._blocked(start, np.where(np.abs(towards) < 1e-6, 1e-6, towards))

    @staticmethod
    def _blocked(start: np.ndarray, towards: np.ndarray) -> np.ndarray:
        low, high = (-1.0 - start) / towards, (1.0 - start) / towards
        enter, leave = np.minimum(low, high).max(1), np.maximum(low, high).min(1)
        return (enter < leave) & (leave > 0)


class Ball(Solid):
    """An ellipsoid."""

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> Hit:
        """Return where rays meet it first, as ``Solid.hit`` does."""
        start, towards = self._own(origin, rays)
        a, b = (towards * towards).sum(1), towards @ start
        c = start @ start - 1
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        t = np.where((root > 0) & (t > NEAR), t, np.inf)
        point = start + np.where(np.isfinite(t), t, 0)[:, None] * towards
        normal = point / self.half.astype(np.float32)
        return t, point, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)

    @staticmethod
    def _blocked(start: np.ndarray, towards: np.ndarray) -> np.ndarray:
        b = start @ towards
        return (b * b - (towards @ towards) * ((start * start).sum(1) - 1) > 0) & (b < 0)


class Board(Solid):
    """A thin board that shows a face. It faces along its first axis; ``half[0]`` is not used."""

    face: str = "back"

    def __init__(self, centre, half: tuple[float, float], yaw: float, face: str, key: int = -1):
        """Place a board. half: (2,), half its width and height. face: name of a picture, see ``pictures.face``."""
        super().__init__(centre, np.array([0.02, *half]), yaw, "board", key=key)
        object.__setattr__(self, "face", face)

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> Hit:
        """Return where rays meet it, as ``Solid.hit`` does; beside the picture's shape there is no hit."""
        start, towards = self._own(origin, rays)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -start[0] / towards[:, 0]
        point = start + np.where(np.isfinite(t), t, 0)[:, None] * towards
        inside = (np.abs(point[:, 1:]) <= 1).all(1) & (t > NEAR)
        if self.face.startswith("no_"):
            inside &= np.hypot(point[:, 1], point[:, 2]) <= 0.98
        normal = np.zeros_like(towards)
        normal[:, 0] = np.sign(start[0])
        return np.where(inside, t, np.inf), point, normal

    def outline(self) -> np.ndarray:
        """Return its four corners (4, 3)."""
        signs = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], dtype=np.float64)
        return self.centre + (signs * self.half) @ self.axes
