"""How cars move: along a lane at one speed, or to a stop. Where the own car is, and what shape cars have."""

from dataclasses import dataclass

import numpy as np

from jettison.domains.perception.world.solids import Solid
from jettison.domains.perception.world.streets import Hills, Street

SIZES = {"car": (2.2, 0.92, 1.5), "truck": (4.4, 1.25, 3.3)}  # half length, half width, height in metres
PAINTS = (
    (0.75, 0.76, 0.78), (0.12, 0.13, 0.15), (0.62, 0.1, 0.1), (0.12, 0.22, 0.5), (0.85, 0.85, 0.82), (0.3, 0.33, 0.3),
    (0.8, 0.62, 0.15), (0.35, 0.15, 0.12),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Drive:
    """A motion along a street.

    offset: metres to the left of the reference line. sign: 1 along it, -1 against it. start: s at time 0.
    speed: metres per second at time 0. stop: s where it comes to rest; None if it does not.
    sway: metres by which it moves about the middle of its lane.
    """

    street: Street
    offset: float
    sign: int
    start: float
    speed: float
    stop: float | None = None
    sway: float = 0.0

    def place(self, time: float) -> float:
        """Return s at a time in seconds."""
        way = self.speed * time
        if self.stop is not None:
            left = max(self.sign * (self.stop - self.start), 0.01)
            way = left * (1 - np.exp(-way / left)) if way > 0 else way
        return self.start + self.sign * way

    def pose(self, hills: Hills, time: float) -> np.ndarray:
        """Return the transform (4, 4) from the car's frame to the world: x forward and along the ground, z up."""
        s = self.place(time)
        sway = self.sway * np.array([np.sin(0.13 * self.start + 0.09 * at) for at in (s - 0.5, s, s + 0.5)])
        behind, middle, ahead = self.street.at([s - 0.5, s, s + 0.5], self.offset + sway)
        forward = self.sign * (hills.lift(ahead[None]) - hills.lift(behind[None]))[0]
        forward /= np.linalg.norm(forward)
        slope_x, slope_y = hills.slope(*middle[:, None])
        up = np.array([-slope_x[0], -slope_y[0], 1.0])
        up -= (up @ forward) * forward
        up /= np.linalg.norm(up)
        pose = np.eye(4)
        pose[:3, :3] = np.column_stack([forward, np.cross(up, forward), up])
        pose[:3, 3] = hills.lift(middle[None])[0]
        return pose


@dataclass(frozen=True, eq=False)
class Car:
    """A car or a truck. seed: of its colour. It is parked if its speed is 0."""

    drive: Drive
    kind: str
    seed: int

    def solids(self, hills: Hills, time: float) -> list[Solid]:
        """Return its boxes at a time in seconds; none after it has left its street."""
        s = self.drive.place(time)
        if not 3 < s < self.drive.street.length - 3:
            return []
        pose = self.drive.pose(hills, time)
        yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
        length, width, height = SIZES[self.kind]
        colour = PAINTS[self.seed % len(PAINTS)]
        ground = pose[:3, 3]
        moving = self.drive.speed > 0

        def box(low: float, high: float, half: tuple[float, float], back: float, paint: str) -> Solid:
            centre = ground + np.array([0, 0, (low + high) / 2]) - back * np.array([np.cos(yaw), np.sin(yaw), 0])
            return Solid(centre, (*half, (high - low) / 2), yaw, paint, colour, self.seed, moving)

        if self.kind == "truck":
            cab = box(0.25, 2.6, (1.0, width * 0.96), 1.0 - length, "cabin")
            return [box(0.35, height, (length - 1.05, width), 1.05, "truck"), cab]
        return [
            box(0.16, 0.92, (length, width), 0, "car"),
            box(0.92, height, (length * 0.52, width * 0.86), 0.25, "cabin"),
        ]


def queue(stop: float, sign: int, starts: list[float], gap: float = 8.0) -> list[float]:
    """Return where cars of a lane come to rest before a stop line, in the order of ``starts``.

    stop: s of the first one. starts: their s at time 0, none beyond the line. gap: metres from car to car.
    """
    order = sorted(range(len(starts)), key=lambda number: -sign * starts[number])
    result = [0.0] * len(starts)
    at = stop
    for number in order:
        result[number] = at
        at -= sign * gap
    return result
