"""The ground and the streets on it: hills, curves, lanes and their painted lines.

- The ground is one smooth height over the plane, and streets lie on it. So everything has one height, ``Hills.height``.
- A street has a reference line. A point is ``s`` metres along it and ``d`` metres to its left.
- Traffic keeps to the right: lanes along the reference line have negative ``d``, lanes against it positive.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

STEP = 0.5  # metres between samples of a reference line
CELL = 4.0  # metres of a cell of the grid of nearest samples
MARGIN = 60.0  # metres around a street that its grid covers
SETBACK = 4.5  # metres from a crossing street to the stop line; lines end there


@dataclass(frozen=True, eq=False)
class Hills:
    """A smooth height: a sum of waves, z = Σ amplitude · sin(wave · (x, y) + phase).

    amplitude, phase: (n,). wave: (n, 2), radians per metre.
    """

    amplitude: np.ndarray
    wave: np.ndarray
    phase: np.ndarray

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the height at points in metres, in the shape and type of ``x``."""
        total = np.zeros_like(x)
        for amplitude, (kx, ky), phase in zip(*self._floats(), strict=True):
            total += amplitude * np.sin(kx * x + ky * y + phase)
        return total

    def slope(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the derivatives of the height by x and by y."""
        along_x, along_y = np.zeros_like(x), np.zeros_like(x)
        for amplitude, (kx, ky), phase in zip(*self._floats(), strict=True):
            value = amplitude * np.cos(kx * x + ky * y + phase)
            along_x += kx * value
            along_y += ky * value
        return along_x, along_y

    def _floats(self):
        return self.amplitude.tolist(), self.wave.tolist(), self.phase.tolist()  # Python floats keep float32 arrays so

    def lift(self, plane: np.ndarray) -> np.ndarray:
        """Return points (n, 3) on the ground at (n, 2) points of the plane."""
        plane = np.asarray(plane, dtype=np.float64)
        return np.column_stack([plane, self.height(plane[:, 0], plane[:, 1])])


@dataclass(frozen=True)
class Line:
    """A painted line of a street.

    offset: metres to the left of the reference line. kind: ``solid`` or ``dashed``. yellow: else white.
    wear: share of the paint that is worn off, 0 to 1. width: metres.
    """

    offset: float
    kind: str
    yellow: bool = False
    wear: float = 0.0
    width: float = 0.15


@dataclass(frozen=True, eq=False)
class Street:
    """A street: its reference line, its lanes and its lines.

    points: (n, 2), samples of the reference line, STEP metres apart.
    forward, backward: number of lanes along the reference line and against it. lane: width of a lane in metres.
    shoulder: metres of asphalt outside the outer lines.
    """

    points: np.ndarray
    forward: int
    backward: int
    lane: float
    lines: tuple[Line, ...]
    shoulder: float = 0.6
    _samples: np.ndarray = field(init=False, repr=False)  # (n, 5): x, y, tangent, curvature
    _grid: tuple = field(init=False, repr=False)

    def __post_init__(self):
        tangent = np.gradient(self.points, STEP, axis=0, edge_order=2)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        turn = np.gradient(np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0])), STEP, edge_order=2)
        samples = np.column_stack([self.points, tangent, turn])
        object.__setattr__(self, "_samples", samples)
        low = self.points.min(0) - MARGIN
        size = np.ceil((self.points.max(0) + MARGIN - low) / CELL).astype(int) + 1
        centres = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij"), -1).reshape(-1, 2)
        nearest = cKDTree(self.points).query(low + (centres + 0.5) * CELL)[1].astype(np.int32)
        object.__setattr__(self, "_grid", (low, size, nearest))

    @property
    def length(self) -> float:
        """Length of the reference line in metres."""
        return (len(self.points) - 1) * STEP

    @property
    def left(self) -> float:
        """Offset of the left outer line in metres."""
        return self.backward * self.lane

    @property
    def right(self) -> float:
        """Offset of the right outer line in metres; it is negative."""
        return -self.forward * self.lane

    def at(self, s, d=0.0) -> np.ndarray:
        """Return points of the plane (n, 2) at ``s`` along and ``d`` to the left. Beyond the ends, ``s`` goes straight.

        s, d: metres, numbers or (n,).
        """
        s, d = np.broadcast_arrays(np.atleast_1d(np.asarray(s, dtype=np.float64)), np.asarray(d, dtype=np.float64))
        i = np.clip(np.rint(s / STEP).astype(int), 0, len(self.points) - 1)
        x, y, tx, ty, turn = self._samples[i].T
        ds = s - i * STEP
        bend = 0.5 * turn * ds * ds
        heading = turn * ds
        nx, ny = -ty - tx * heading, tx - ty * heading
        return np.column_stack([x + tx * ds - ty * bend + nx * d, y + ty * ds + tx * bend + ny * d])

    def heading(self, s: float) -> np.ndarray:
        """Return the direction (2,) of the reference line at ``s``."""
        i = int(np.clip(round(s / STEP), 0, len(self.points) - 1))
        return self._samples[i, 2:4]

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return where points are on the street: ``s``, ``d``, and the direction of the street there, x and y.

        d is 1e3 beyond the ends and farther than about MARGIN from the street. Nearer, its error is below a millimetre.
        x, y: (n,) metres; the results have their type.
        """
        low, size, nearest = self._grid
        i = ((x - low[0].item()) / CELL).astype(np.int32)
        j = ((y - low[1].item()) / CELL).astype(np.int32)
        inside = (i >= 0) & (i < size[0]) & (j >= 0) & (j < size[1])
        place = nearest[np.where(inside, i * np.int32(size[1]) + j, 0)]
        samples = self._samples.astype(x.dtype)
        for _ in range(3):  # each time from a nearer sample
            px, py, tx, ty, turn = samples[place].T
            dx, dy = x - px, y - py
            ds, d = dx * tx + dy * ty, dy * tx - dx * ty
            ds /= np.maximum(1 - turn * d, 0.2)
            before, place = place, np.clip(place + np.rint(ds / STEP).astype(np.int32), 0, len(samples) - 1)
        s = before.astype(x.dtype) * STEP + ds
        d -= 0.5 * turn * ds * ds
        outside = ~inside | (s < 0) | (s > self.length)
        return s, np.where(outside, x.dtype.type(1e3), d), tx, ty

    def lane_middle(self, lane: int) -> float:
        """Return the offset of a lane's middle. lane: 0 is nearest to the reference line; ~0, ~1 drive against it."""
        return -(lane + 0.5) * self.lane if lane >= 0 else (~lane + 0.5) * self.lane

    def lanes(self) -> list[int]:
        """Return the numbers of all lanes, see ``lane_middle``."""
        return [*range(self.forward), *(~lane for lane in range(self.backward))]

    def line_at(self, offset: float) -> Line | None:
        """Return the painted line at an offset. None if there is none."""
        return next((line for line in self.lines if abs(line.offset - offset) < 0.3), None)


def trace(start: np.ndarray, heading: float, curvature: np.ndarray) -> np.ndarray:
    """Return samples (n + 1, 2) of a reference line, STEP metres apart. curvature: (n,), radians per metre."""
    before = heading + np.concatenate([[0.0], np.cumsum(curvature * STEP)])
    middle = 0.5 * (before[1:] + before[:-1])
    steps = STEP * np.column_stack([np.cos(middle), np.sin(middle)])
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
