"""The colour of the ground: grass, pavements, asphalt and what is painted on it.

Painted lines are drawn by the share of a pixel that they cover, so thin lines far away stay smooth.
"""

from dataclasses import dataclass

import numpy as np

from jettison.domains.perception.world import noise
from jettison.domains.perception.world.pictures import arrow
from jettison.domains.perception.world.streets import Line, Street
from jettison.domains.perception.world.world import World

CORNER = 5.0  # metres by which corners between streets are rounded
PAVEMENT, KERB = 2.4, 0.18  # metres beside the asphalt
DASH, PERIOD = 3.5, 9.0  # metres of a dash, and from one to the next
STOP_WIDTH, ZEBRA = 0.4, (1.0, 3.4)  # metres: a stop line; from the stop line to a zebra crossing's sides
ARROW_LONG, ARROW_WIDE, ARROW_BEFORE = 4.2, 1.5, 7.0  # metres of an arrow, and from its middle to the stop line
ROUGH = ((0.07, 0.14), (0.17, 0.14), (0.42, 0.12), (1.1, 0.09), (3.1, 0.05), (9.0, 0.05))
GRASS = ((0.09, 0.24), (0.22, 0.25), (0.6, 0.24), (1.7, 0.18), (5.0, 0.14), (17.0, 0.1))
WHITE, YELLOW = np.array([0.83, 0.83, 0.8], np.float32), np.array([0.82, 0.62, 0.16], np.float32)
PICTURE = {"straight": "go_straight", "left": "turn_left", "right": "turn_right", "u": "u_turn"}


@dataclass(frozen=True, eq=False)
class Footprint:
    """What a pixel covers of the ground: an ellipse.

    along, across: (n,) metres, along the ray and across it. ray_x, ray_y: (n,), the ray's direction in the plane.
    """

    along: np.ndarray
    across: np.ndarray
    ray_x: np.ndarray
    ray_y: np.ndarray

    def take(self, where: np.ndarray) -> "Footprint":
        """Return that of some pixels."""
        return Footprint(self.along[where], self.across[where], self.ray_x[where], self.ray_y[where])

    def mean(self) -> np.ndarray:
        """Return one size for both directions."""
        return np.sqrt(self.along * self.across)

    def width(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the metres that pixels cover in a direction of the plane. x, y: (n,), of length 1."""
        forth, side = x * self.ray_x + y * self.ray_y, x * self.ray_y - y * self.ray_x
        return np.sqrt((self.along * forth) ** 2 + (self.across * side) ** 2) + 1e-4


def cover(at: np.ndarray, width: np.ndarray, low, high) -> np.ndarray:
    """Return the share of the intervals ``at`` ± ``width`` / 2 that lies between ``low`` and ``high``."""
    half = 0.5 * width
    return np.maximum(np.minimum(at + half, high) - np.maximum(at - half, low), 0) / width


def stripes(at: np.ndarray, width: np.ndarray, period: float, paint: float) -> np.ndarray:
    """Return the share of the intervals ``at`` ± ``width`` / 2 that stripes cover, from 0 to ``paint`` of a period."""
    painted = lambda x: np.floor(x / period) * paint + np.minimum(np.mod(x, period), paint)
    return np.clip((painted(at + 0.5 * width) - painted(at - 0.5 * width)) / width, 0, 1)


class Ground:
    """The ground of a world."""

    def __init__(self, world: World):
        """Take the streets and the marks of a world."""
        self.streets, self.junction = world.streets, world.network.junction
        self.arrows = _arrows(world)
        self.green = world.seed % 2 == 0

    def colour(self, x: np.ndarray, y: np.ndarray, footprint: Footprint) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours (n, 3) without light, and whether points are asphalt (n,), as shares from 0 to 1."""
        places = [street.locate(x, y) for street in self.streets]
        beside = [
            np.maximum(d - (street.left + street.shoulder), (street.right - street.shoulder) - d)
            for street, (_, d, _, _) in zip(self.streets, places, strict=True)
        ]
        edge = beside[0]
        for other in beside[1:]:  # the smooth minimum rounds the corners
            mix = np.clip(0.5 + 0.5 * (edge - other) / CORNER, 0, 1)
            edge = edge * (1 - mix) + other * mix - CORNER * mix * (1 - mix)
        pixel = footprint.mean()
        wide = np.maximum(pixel, 1e-3)
        share = lambda limit: np.clip(0.5 + (limit - edge) / wide, 0, 1)
        asphalt = share(0.0)
        result = np.zeros((len(x), 3), np.float32)
        on, off = np.flatnonzero(asphalt > 0), np.flatnonzero(asphalt < 1)
        if len(off):
            result[off] = self._verge(x[off], y[off], pixel[off], edge[off], share(KERB)[off], share(PAVEMENT)[off])
        if len(on):
            part = [tuple(value[on] for value in place) for place in places]
            road = self._asphalt(x[on], y[on], footprint.take(on), part)
            a = asphalt[on, None]
            result[on] = np.where(a < 1, result[on] * (1 - a) + road * a, road) if len(off) else road
        return result, asphalt

    def _verge(self, x, y, pixel, edge, kerb, pavement) -> np.ndarray:
        """Kerb, pavement with slabs, then grass or earth."""
        grain = noise.texture(x, y, pixel, GRASS, 10)
        patch = np.clip(0.5 + 0.8 * noise.sample(x, y, 14.0, 7), 0, 1)[:, None]
        grass = np.array([0.25, 0.34, 0.14] if self.green else [0.36, 0.33, 0.2], np.float32)
        earth = np.array([0.4, 0.34, 0.25], np.float32)
        colour = (grass * patch + earth * (1 - patch)) * (1 + grain)[:, None]
        near = np.flatnonzero(pavement > 0)
        if len(near):
            a, b, w = x[near], y[near], np.maximum(pixel[near], 1e-3)
            seam = np.maximum(stripes(a, w, 0.9, 0.05), stripes(b, w, 0.9, 0.05))
            slab = 0.5 * (1 + noise.texture(a, b, pixel[near], ROUGH, 20)) * (1 - 0.35 * seam)
            stone = slab[:, None] * np.array([1.0, 0.97, 0.92], np.float32)
            stone = stone * (1 - kerb[near, None]) + 0.62 * kerb[near, None]
            colour[near] = colour[near] * (1 - pavement[near, None]) + stone * pavement[near, None]
        return colour

    def _asphalt(self, x, y, footprint: Footprint, places) -> np.ndarray:
        pixel = footprint.mean()
        grey = 0.27 * (1 + noise.texture(x, y, pixel, ROUGH, 0))
        cracks = np.abs(noise.sample(x, y, 5.5, 8))
        grey *= 1 - 0.35 * np.clip(1 - cracks / (0.025 + 0.15 * pixel), 0, 1) * noise.weight(0.5, pixel)
        colour = grey[:, None] * np.array([1.0, 1.0, 1.03], np.float32)
        worn = 0.5 + 0.35 * noise.texture(x, y, pixel, ((0.35, 0.8), (1.3, 0.6)), 30)
        for number, (street, (s, d, tx, ty)) in enumerate(zip(self.streets, places, strict=True)):
            near = np.flatnonzero((d < street.left + 0.5) & (d > street.right - 0.5))
            if not len(near):
                continue
            s, d, tx, ty = s[near], d[near], tx[near], ty[near]
            part = footprint.take(near)
            wide, long = part.width(-ty, tx), part.width(tx, ty)
            white, yellow = self._paint(number, street, s, d, wide, long, worn[near])
            under = colour[near] * (1 - 0.12 * _tracks(street, d))[:, None]
            under = under * (1 - white - yellow)[:, None] + white[:, None] * WHITE + yellow[:, None] * YELLOW
            colour[near] = under
        return colour

    def _paint(self, number: int, street: Street, s, d, wide, long, worn) -> tuple[np.ndarray, np.ndarray]:
        """The shares of white and yellow paint."""
        white, yellow = np.zeros_like(s), np.zeros_like(s)
        open_road = np.ones_like(s)
        if self.junction:
            place, gap = self.junction.places[number], self.junction.gaps[number]
            open_road = 1 - cover(s, long, place - gap, place + gap)
        for line in street.lines:
            close = np.flatnonzero(np.abs(d - line.offset) < 0.5 * (line.width + wide))
            if not len(close):
                continue
            share = cover(d[close], wide[close], line.offset - line.width / 2, line.offset + line.width / 2)
            if line.kind == "dashed":
                share *= stripes(s[close], long[close], PERIOD, DASH)
            if not self.runs_through(number, line):
                share *= open_road[close]
            share *= 1 - np.clip((line.wear - worn[close]) * 4 + 0.5, 0, 1) * min(1.0, line.wear * 1.3)
            (yellow if line.yellow else white)[close] += share
        if self.junction:
            white += self._junction_marks(number, street, s, d, wide, long) * (1 - 0.25 * np.clip(worn, 0, 1))
        white = np.clip(white, 0, 1)
        return white, np.clip(yellow, 0, 1 - white)

    def runs_through(self, number: int, line: Line) -> bool:
        """Return whether a line goes on past the junction: the outer one on the side without an arm."""
        if self.junction is None or self.junction.through or number == 1:
            return False
        main, side = self.streets
        right_arm = np.cross(main.heading(self.junction.places[0]), side.heading(0.0)) < 0
        return abs(line.offset) > 0.1 and line.offset == (main.left if right_arm else main.right)

    def _junction_marks(self, number: int, street: Street, s, d, wide, long) -> np.ndarray:
        """Stop lines, zebra crossings and arrows."""
        total = np.zeros_like(s)
        for arm, approach in enumerate(self.junction.approaches()):
            if approach.street != number:
                continue
            into = approach.sign * (s - approach.stop)  # metres past the stop line
            close = np.flatnonzero((into > -ARROW_BEFORE - 5) & (into < ZEBRA[1] + 3))
            if not len(close):
                continue
            a, b, w, v = into[close], d[close], wide[close], long[close]
            low, high = (street.right, 0.0) if approach.sign > 0 else (0.0, street.left)
            marks = cover(a, v, -STOP_WIDTH, 0.0) * cover(b, w, low + 0.1, high - 0.1)
            bars = stripes(b, w, 1.0, 0.5) * cover(b, w, street.right + 0.2, street.left - 0.2)
            marks = np.maximum(marks, cover(a, v, *ZEBRA) * bars)
            for middle, names in self.arrows[arm]:
                side = (b - middle) * approach.sign / (ARROW_WIDE / 2)
                ahead = (a + ARROW_BEFORE) / (ARROW_LONG / 2)
                box = np.flatnonzero((np.abs(side) < 1.1) & (np.abs(ahead) < 1.1))
                for name in names:
                    inside = [
                        arrow(-side[box] + i * w[box] / ARROW_WIDE, ahead[box] + j * v[box] / ARROW_LONG, name)
                        for i in (-0.5, 0.5) for j in (-0.75, -0.25, 0.25, 0.75)
                    ]  # fmt: skip
                    marks[box] = np.maximum(marks[box], np.mean(inside, axis=0))
            total[close] += marks
        return np.clip(total, 0, 1)


def _tracks(street: Street, d: np.ndarray) -> np.ndarray:
    """How dark tyres have made the asphalt: two tracks in every lane."""
    place = np.mod(d / street.lane, 1.0)
    return np.exp(-(((np.abs(place - 0.5) - 0.24) / 0.09) ** 2))


def _arrows(world: World) -> list[list[tuple[float, list[str]]]]:
    """For every approach its painted arrows: the middle of the lane, and the pictures."""
    network = world.network
    if network.junction is None:
        return []
    result: list[list[tuple[float, list[str]]]] = []
    for arm, approach in enumerate(network.junction.approaches()):
        street = world.streets[approach.street]
        lanes = sorted(lane for number, lane in network.incoming if number == arm)
        middles = [street.lane_middle(lane if approach.sign > 0 else ~lane) for lane in lanes]
        moves = [sorted(network.moves(arm, lane)) for lane in lanes]
        result.append([(m, [PICTURE[move] for move in names]) for m, names in zip(middles, moves, strict=True)])
    return result
