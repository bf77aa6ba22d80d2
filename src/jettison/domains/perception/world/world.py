"""Draws a world from a seed: hills, streets, a junction, signs, houses, trees, cars, and the drive of the own car."""

from dataclasses import dataclass, replace

import numpy as np

from jettison.core.errors import unknown
from jettison.core.numbers import check_seed
from jettison.domains.perception.world.driving import Car, Drive, queue
from jettison.domains.perception.world.network import Approach, Junction, Network, gaps
from jettison.domains.perception.world.signs import (
    ROUND,
    STATES,
    Element,
    Furniture,
    bans,
    make_rules,
    u_turns,
)
from jettison.domains.perception.world.solids import Ball, Solid
from jettison.domains.perception.world.streets import STEP, Hills, Line, Street, trace

PLACES = ("road", "junction", "fork")  # a fork is a junction whose side street ends there
WEATHERS = ("day", "night", "rain")
FRONTS = ((0.6, 0.5, 0.42), (0.5, 0.5, 0.5), (0.66, 0.6, 0.48), (0.5, 0.33, 0.27), (0.68, 0.66, 0.6), (0.42, 0.46, 0.5))
GREEN, STONE = (0.2, 0.31, 0.12), (0.5, 0.47, 0.42)
MAIN, SIDE = 440.0, 150.0  # metres of the main street, and of each arm of the side street


@dataclass(frozen=True, eq=False)
class World:
    """All that is in a world.

    lamps: (n, 3), street lamps. sun: (3,), the direction to the sun.
    """

    seed: int
    place: str
    weather: str
    hills: Hills
    streets: list[Street]
    network: Network
    elements: list[Element]
    still: list[Solid]
    cars: list[Car]
    ego: Drive
    lamps: np.ndarray
    sun: np.ndarray

    def solids(self, time: float) -> list[Solid]:
        """Return all solid things at a time in seconds."""
        return [*self.still, *(solid for car in self.cars for solid in car.solids(self.hills, time))]

    def ego_to_world(self, time: float) -> np.ndarray:
        """Return where the own car is at a time, (4, 4)."""
        return self.ego.pose(self.hills, time)


def make_world(seed: int, place: str | None = None, weather: str | None = None) -> World:
    """Draw a world.

    place: road, junction or fork. weather: day, night or rain. None: drawn from the seed.
    Raises UsageError for another name, and for a seed that is not a whole number from 0 to 2^32 − 1.
    """
    check_seed(seed)
    rng = np.random.default_rng([20240404, seed])
    drawn = PLACES[rng.choice(3, p=(0.3, 0.4, 0.3))], WEATHERS[rng.choice(3, p=(0.6, 0.2, 0.2))]
    place, weather = place or drawn[0], weather or drawn[1]
    for name, kind, valid in ((place, "place", PLACES), (weather, "weather", WEATHERS)):
        if name not in valid:
            raise unknown(kind, name, valid)
    hills = _make_hills(rng)
    start = rng.uniform(115, 140)
    crossing = start + rng.uniform(38, 70)
    main = _make_street(rng, _main_line(rng, None if place == "road" else crossing), rng.integers(1, 4))
    streets, junction = [main], None
    if place != "road":
        side, junction = _make_side(rng, main, crossing, place)
        streets.append(side)
    rules = make_rules(rng, streets, junction) if junction else []
    network = Network(streets, junction, bans(rules), u_turns(rules))
    furniture, state = Furniture(hills, streets), STATES[rng.choice(4, p=(0.4, 0.35, 0.15, 0.1))]
    if junction:
        _furnish(rng, furniture, network, rules, state)
    elif rng.random() < 0.7:
        name = ("no_u_turn", "go_straight", "u_turn")[rng.integers(3)]
        edge = main.right - main.shoulder - 0.8
        furniture.post(main, start + 30, edge, 3.0)
        forward = [number for number, path in enumerate(network.paths) if path.lane >= 0]
        furniture.put(name, Approach(0, 1, start + 30), start + 29.9, edge, 2.5, ROUND, forward)
    lamps = _put_lamps(furniture, main)
    ego, cars = _make_traffic(rng, streets, junction, state, start)
    still = [*furniture.solids, *_build(rng, hills, streets), *_plant(rng, hills, streets), *_edge(rng, hills, streets)]
    height, around = np.radians(rng.uniform(28, 55)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(height) * np.cos(around), np.cos(height) * np.sin(around), np.sin(height)])
    return World(
        seed, place, weather, hills, streets, network, furniture.elements, still, cars, ego, lamps, sun
    )  # fmt: skip


def _make_hills(rng: np.random.Generator) -> Hills:
    """Two or three waves, mostly along the main street, of at most 6 percent together."""
    length = rng.uniform(130, 320, 3)
    turn = rng.uniform(-0.35, 0.35, 3)
    wave = (2 * np.pi / length)[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    steep = rng.uniform(0.25, 1.0, 3)
    steep *= rng.uniform(0.01, 0.06) / steep.sum()
    return Hills(steep * length / (2 * np.pi), wave, rng.uniform(0, 2 * np.pi, 3))


def _main_line(rng: np.random.Generator, crossing: float | None) -> np.ndarray:
    """The main street's reference line, straight around the crossing."""
    s = np.arange(0, MAIN, STEP) + STEP / 2
    wave, radius = rng.uniform(150, 260), rng.uniform(70, 260)
    curvature = np.sin(2 * np.pi * s / wave + rng.uniform(0, 2 * np.pi)) / radius
    if crossing is not None:
        curvature *= 1 - np.exp(-(((s - crossing) / 28) ** 4))
    return trace(np.zeros(2), 0.0, curvature)


def _make_street(rng: np.random.Generator, points: np.ndarray, lanes: int) -> Street:
    backward = max(1, lanes - int(rng.integers(0, 2)))
    lane = rng.uniform(3.2, 3.7)
    wear = lambda: rng.uniform(0.5, 0.9) if rng.random() < 0.25 else rng.uniform(0.0, 0.2)
    middle = "dashed" if lanes == backward == 1 and rng.random() < 0.6 else "solid"
    lines = [Line(0.0, middle, bool(rng.random() < 0.5), wear())]
    for count, side in ((lanes, -1), (backward, 1)):
        lines += [Line(side * number * lane, "dashed", False, wear()) for number in range(1, count)]
        if rng.random() < 0.9:
            lines.append(Line(side * count * lane, "solid", False, wear()))
    return Street(
        points, int(lanes), backward, lane, tuple(lines), 2.6 if rng.random() < 0.35 else rng.uniform(0.4, 0.9)
    )


def _make_side(rng: np.random.Generator, main: Street, crossing: float, place: str) -> tuple[Street, Junction]:
    """The side street and the junction. A side street that would come near the main street again is drawn again."""
    meet, along = main.at(crossing)[0], main.heading(crossing)
    base = np.arctan2(along[1], along[0])
    while True:
        angle = np.radians(rng.uniform(50, 130))
        side = rng.choice((-1, 1)) if place == "fork" else 1
        count = int(SIDE / STEP)
        s = np.arange(count) * STEP
        bend = lambda s=s: (1 - np.exp(-((s / 40) ** 4))) * rng.uniform(-1, 1) / 110
        after = trace(meet, base + side * angle, bend())
        points = after
        if place == "junction":
            before = trace(meet, base + angle + np.pi, bend())
            points = np.concatenate([before[:0:-1], after])
        d = main.locate(points[:, 0], points[:, 1])[1]
        far = np.linalg.norm(points - meet, axis=1) > 45
        if not (np.abs(d[far]) < 22).any():
            break
    street = _make_street(rng, points, int(rng.integers(1, 3)))
    place_side = SIDE if place == "junction" else 0.0
    return street, Junction((crossing, place_side), gaps(main, street, angle), place == "junction")


def _furnish(rng, furniture: Furniture, network: Network, rules, state: str) -> None:
    """Put up the lights and signs of the junction."""
    junction = network.junction
    other = {"green": "red", "yellow": "red", "red": "green", "unknown": "unknown"}[state]
    lights = rng.random() < 0.8
    for number, approach in enumerate(junction.approaches()):
        incoming = [path for (arm, _), path in network.incoming.items() if arm == number]
        if lights:
            paths = [*incoming, *(after for path in incoming for after in network.connectors(path))]
            gap = junction.gaps[approach.street] - 2.5
            beyond = junction.places[approach.street] + approach.sign * gap
            furniture.light(state if approach.street == 0 else other, approach, beyond, paths)
        posts = 0
        for rule in rules:
            if rule.approach == number:
                furniture.rule(rule, approach, network, posts)
                posts += not rule.overhead


def _put_lamps(furniture: Furniture, main: Street) -> np.ndarray:
    places = np.arange(20, main.length - 10, 36.0)
    side = main.left + main.shoulder + 1.4
    for s in places:
        furniture.post(main, float(s), side, 7.0, 0.08)
        furniture.beam(main, float(s), side - 1.8, side, 6.9)
    return furniture.hills.lift(main.at(places, side - 1.6)) + np.array([0, 0, 6.8])


def _make_traffic(rng, streets: list[Street], junction: Junction | None, state: str, start: float):
    """The own car and all others. Where a light is red, and on the side street otherwise, cars come to a stop."""
    main = streets[0]
    own = int(rng.integers(main.forward))
    cruise = rng.uniform(7, 11)
    ego = Drive(main, main.lane_middle(own), 1, start, cruise, sway=rng.uniform(0.05, 0.25))
    cars: list[Car] = []
    for number, street in enumerate(streets):
        for lane in street.lanes():
            sign = 1 if lane >= 0 else -1
            halts = junction is not None and (
                (number == 0) == (state == "red") or (number == 1 and not junction.through)
            )
            speed = cruise if (number, lane) == (0, own) else rng.uniform(6, 11)
            gap = junction.gaps[number] if junction else 0.0
            stop = junction.places[number] - sign * (gap + 3.0) if halts else None
            middle = street.lane_middle(lane)
            starts = [
                float(s) for s in _spread(rng, street.length) if (number, lane) != (0, own) or abs(s - start) > 13
            ]
            before = [s for s in starts if stop is not None and sign * (stop - s) > 0]
            waits = (number, lane) == (0, own) and stop is not None
            rest = queue(stop, sign, [*before, start] if waits else before) if stop is not None else []
            if waits:
                ego = replace(ego, stop=rest.pop() - 1.5)
            for s in starts:
                halt = rest[before.index(s)] if s in before else None
                if stop is not None and halt is None and abs(s - junction.places[number]) < gap + 4:
                    continue  # it would stand in the junction
                kind = "truck" if rng.random() < 0.15 else "car"
                cars.append(Car(Drive(street, middle, sign, s, speed, halt), kind, int(rng.integers(1 << 16))))
        if street.shoulder > 2:
            crossing = junction.places[number] if junction else -1e3
            for s in np.arange(20, street.length - 20, 7.0):
                if rng.random() < 0.4 and abs(s - crossing) > (junction.gaps[number] + 6 if junction else 0):
                    drive = Drive(street, street.right - 1.35, 1, float(s), 0.0)
                    cars.append(Car(drive, "car", int(rng.integers(1 << 16))))
    return ego, cars


def _spread(rng: np.random.Generator, length: float) -> list[float]:
    places, s = [], rng.uniform(5, 40)
    while s < length - 5:
        places.append(s)
        s += rng.uniform(14, 60)
    return places


def _clear(streets: list[Street], points: np.ndarray) -> np.ndarray:
    """The distance (n,) of points (n, 2) from the asphalt of any street, in metres."""
    least = np.full(len(points), np.inf)
    for street in streets:
        d = street.locate(points[:, 0], points[:, 1])[1]
        ends = np.linalg.norm(points[:, None] - street.points[[0, -1]][None], axis=2).min(1)
        beside = np.maximum(d - street.left, street.right - d) - street.shoulder
        least = np.minimum(least, np.minimum(beside, ends - 8))
    return least


def _varied(rng: np.random.Generator, colour: tuple, by: float) -> tuple[float, float, float]:
    """A colour like another one."""
    return tuple(float(part) for part in np.array(colour) * rng.uniform(1 - by, 1 + by, 3))


def _build(rng: np.random.Generator, hills: Hills, streets: list[Street]) -> list[Solid]:
    """Houses along both sides of all streets."""
    houses: list[Solid] = []
    dense = rng.uniform(0.5, 0.98)
    for street in streets:
        for side in (-1, 1):
            s = rng.uniform(0, 10)
            while s < street.length:
                half = np.array([rng.uniform(5, 11), rng.uniform(4, 8), rng.uniform(2.5, 9)])
                s += half[0]
                edge = (street.left if side > 0 else street.right) + side * (street.shoulder + rng.uniform(4, 11))
                centre = street.at(s, edge + side * half[1])[0]
                heading = street.heading(s)
                yaw = float(np.arctan2(heading[1], heading[0]))
                colour = _varied(rng, FRONTS[rng.integers(len(FRONTS))], 0.12)
                house = Solid((*centre, 0.0), half, yaw, "building", colour, int(rng.integers(1 << 16)))
                ring = np.concatenate([house.corners()[:, :2], centre[None]])
                room = all(
                    np.linalg.norm(other.centre[:2] - centre) > 0.85 * np.hypot(*(other.half[:2] + half[:2]))
                    for other in houses
                )
                if rng.random() < dense and room and _clear(streets, ring).min() > 3.2:
                    base = hills.height(*ring.T).min() - 0.5
                    houses.append(replace(house, centre=np.array([*centre, base + half[2]])))
                s += half[0] + rng.uniform(1, 9)
    return houses


def _spots(rng: np.random.Generator, streets: list[Street], every: float, beside: tuple[float, float], clear: float):
    """Yield places beside the streets: the street, s, and the point (2,).

    every: metres from one to the next, on average. beside: least and most metres from the asphalt. clear: least metres
    from the asphalt of any street.
    """
    for street in streets:
        for side in (-1, 1):
            s = np.cumsum(rng.uniform(0.4 * every, 1.6 * every, int(street.length / every)))
            edge = street.left if side > 0 else street.right
            points = street.at(s, edge + side * (street.shoulder + rng.uniform(*beside, len(s))))
            free = (_clear(streets, points) > clear) & (s < street.length)
            yield from ((street, float(s[place]), points[place]) for place in np.flatnonzero(free))


def _plant(rng: np.random.Generator, hills: Hills, streets: list[Street]) -> list[Solid]:
    """Trees between the street and the houses, some farther away."""
    trees: list[Solid] = []
    for _, _, spot in _spots(rng, streets, 30.0, (2.9, 9.0), 2.6):
        foot, tall = hills.lift(spot[None])[0], rng.uniform(3.5, 7)
        seed = int(rng.integers(1 << 16))
        trunk = (0.16, 0.16, tall / 4 + 0.3)
        trees.append(Solid(foot + np.array([0, 0, tall / 4]), trunk, 0, "trunk", (0.3, 0.22, 0.16), seed))
        wide = min(rng.uniform(0.28, 0.42) * tall, 2.4)
        crown = (wide, wide, tall * 0.34)
        trees.append(Ball(foot + np.array([0, 0, tall * 0.7]), crown, 0, "leaves", _varied(rng, GREEN, 0.3), seed))
    return trees


def _edge(rng: np.random.Generator, hills: Hills, streets: list[Street]) -> list[Solid]:
    """Bushes, stones and low walls beside the pavements."""
    things: list[Solid] = []
    for street, s, spot in _spots(rng, streets, 5.0, (3.0, 6.5), 2.8):
        foot, seed, draw = hills.lift(spot[None])[0], int(rng.integers(1 << 16)), rng.random()
        if draw < 0.55:
            half = rng.uniform((0.5, 0.5, 0.4), (1.2, 1.2, 1.0))
            centre = foot + np.array([0, 0, 0.6 * half[2]])
            things.append(Ball(centre, half, 0, "leaves", _varied(rng, GREEN, 0.25), seed))
        elif draw < 0.75:
            half = rng.uniform((0.3, 0.3, 0.2), (0.8, 0.8, 0.6))
            centre = foot + np.array([0, 0, 0.5 * half[2]])
            things.append(Ball(centre, half, 0, "wall", _varied(rng, STONE, 0.15), seed))
        else:
            heading, half = street.heading(s), np.array([rng.uniform(1, 2.6), 0.15, rng.uniform(0.5, 0.9)])
            yaw = float(np.arctan2(heading[1], heading[0]))
            centre = foot + np.array([0, 0, half[2] - 0.2])
            wall = Solid(centre, half, yaw, "wall", _varied(rng, STONE, 0.15), seed)
            if _clear(streets, wall.corners()[:, :2]).min() > 2.6:
                things.append(wall)
    return things
