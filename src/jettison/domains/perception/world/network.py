"""The graph of lanes: lanes before and after a junction, the ways through it, and what signs allow.

- A junction is where the side street meets the main street. The side street may end there.
- Of every approach, the leftmost lane may turn left, the rightmost right, and all may go straight on, unless a sign
  says otherwise. A sign and the graph never contradict each other.
"""

from dataclasses import dataclass, field

import numpy as np

from jettison.domains.perception.world.streets import SETBACK, Street

SPACING = 1.0  # metres between points of a lane
SLIGHT = np.radians(65)  # a turn by less than this is slight


@dataclass(frozen=True)
class Approach:
    """The lanes by which one arm of a street reaches the junction.

    street: number of the street. sign: 1 if traffic drives along the reference line, -1 against it.
    stop: s of the stop line.
    """

    street: int
    sign: int
    stop: float


@dataclass(eq=False)
class LanePath:
    """A lane up to its end or to a junction, or a way through a junction.

    points: (n, 2) of the plane, in driving direction. street, lane: see ``Street.lane_middle``; -1 in a junction.
    start, end: s of both ends on the street.
    move: of a way through a junction: straight, left, right or u.
    after: numbers of the paths that continue here.
    """

    points: np.ndarray
    street: int = -1
    lane: int = -1
    start: float = 0.0
    end: float = 0.0
    move: str = ""
    after: list[int] = field(default_factory=list)

    @property
    def in_junction(self) -> bool:
        """Whether this is a way through a junction."""
        return bool(self.move)


@dataclass(frozen=True, eq=False)
class Junction:
    """Where the side street, number 1, meets the main street, number 0.

    places: s of the crossing point on both streets. gaps: metres from there to the stop lines, of both streets.
    through: whether the side street goes on beyond the main street; otherwise it begins there.
    """

    places: tuple[float, float]
    gaps: tuple[float, float]
    through: bool

    def approaches(self) -> list[Approach]:
        """Return all approaches; that of the main street along its reference line is the first."""
        (main, side), (gap, side_gap) = self.places, self.gaps
        arms = [Approach(0, 1, main - gap), Approach(0, -1, main + gap), Approach(1, -1, side + side_gap)]
        return [*arms, Approach(1, 1, side - side_gap)] if self.through else arms


def gaps(main: Street, side: Street, angle: float) -> tuple[float, float]:
    """Return the metres from the crossing point to the stop lines of both streets. angle: between them, radians."""
    sine, cotangent = abs(np.sin(angle)), abs(1 / np.tan(angle))
    wide = lambda street: max(street.left, -street.right) + street.shoulder
    return (
        float(wide(side) / sine + wide(main) * cotangent + SETBACK),
        float(wide(main) / sine + wide(side) * cotangent + SETBACK),
    )


def turn_of(streets: list[Street], approach: Approach, leave: Approach) -> float:
    """Return the angle by which a car turns that comes by one approach and leaves by the arm of another one.

    Radians, positive to the left, from -π to π.
    """
    before = approach.sign * streets[approach.street].heading(approach.stop)
    after = -leave.sign * streets[leave.street].heading(leave.stop)
    return float(np.arctan2(before[0] * after[1] - before[1] * after[0], before @ after))


def move_of(angle: float) -> str:
    """Return the name of a turn by an angle: straight, left, right or u."""
    if abs(angle) > np.radians(150):
        return "u"
    return "straight" if abs(angle) < np.radians(25) else "left" if angle > 0 else "right"


def _lane_path(street: Street, number: int, lane: int, start: float, end: float) -> LanePath:
    """A lane from ``start`` to ``end``, both s in driving direction."""
    count = max(2, round(abs(end - start) / SPACING) + 1)
    points = street.at(np.linspace(start, end, count), street.lane_middle(lane))
    return LanePath(points, number, lane, start, end)


def _bend(start: np.ndarray, before: np.ndarray, end: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A cubic Bézier curve between two points (2,) with the given directions (2,)."""
    reach = 0.4 * np.linalg.norm(end - start) + (1.5 if before @ after < -0.5 else 0.0)
    control = np.stack([start, start + reach * before, end - reach * after, end])
    t = np.linspace(0, 1, max(8, round(1.2 * np.linalg.norm(end - start) / SPACING)))[:, None]
    return sum(k * (1 - t) ** (3 - n) * t**n * control[n] for n, k in enumerate((1, 3, 3, 1)))


class Network:
    """All paths of a world, and which may follow which."""

    def __init__(
        self, streets: list[Street], junction: Junction | None, banned: set[tuple[int, int, str]], u_turns: set[int]
    ):
        """Build the graph.

        banned: what signs forbid: (approach, lane counted from the middle of the street, move).
        u_turns: approaches whose cars may turn back.
        """
        self.streets, self.junction, self.paths = streets, junction, []
        self.incoming: dict[tuple[int, int], int] = {}  # (approach, lane) -> path
        if junction is None:
            for number, street in enumerate(streets):
                for lane in street.lanes():
                    ends = (0.0, street.length) if lane >= 0 else (street.length, 0.0)
                    self.paths.append(_lane_path(street, number, lane, *ends))
            return
        leaving: dict[tuple[int, int], int] = {}
        approaches = junction.approaches()
        for number, approach in enumerate(approaches):
            street = streets[approach.street]
            far = 0.0 if approach.sign > 0 else street.length
            for lane in street.lanes():
                along = (lane >= 0) == (approach.sign > 0)
                ends = (far, approach.stop) if along else (approach.stop, far)
                (self.incoming if along else leaving)[number, max(lane, ~lane)] = len(self.paths)
                self.paths.append(_lane_path(street, approach.street, lane, *ends))
        for a, approach in enumerate(approaches):
            lanes = sorted(lane for number, lane in self.incoming if number == a)
            for b, leave in enumerate(approaches):
                move = move_of(turn_of(streets, approach, leave))
                outs = sorted(lane for number, lane in leaving if number == b)
                for lane in lanes:
                    if (a, lane, move) in banned or not self._allowed(move, lane, lanes, a in u_turns):
                        continue
                    out = {"left": outs[0], "u": outs[0], "right": outs[-1]}.get(move, min(lane, outs[-1]))
                    self._connect(self.incoming[a, lane], leaving[b, out], move)

    @staticmethod
    def _allowed(move: str, lane: int, lanes: list[int], u_turns: bool) -> bool:
        if move == "straight":
            return True
        return lane == lanes[-1] if move == "right" else lane == lanes[0] and (move == "left" or u_turns)

    def _connect(self, before: int, after: int, move: str) -> None:
        first, last = self.paths[before].points, self.paths[after].points
        unit = lambda v: v / np.linalg.norm(v)
        points = _bend(first[-1], unit(first[-1] - first[-2]), last[0], unit(last[1] - last[0]))
        self.paths[before].after.append(len(self.paths))
        self.paths.append(LanePath(points, move=move, after=[after]))

    def moves(self, approach: int, lane: int) -> set[str]:
        """Return what a lane of an approach may do at the junction."""
        return {self.paths[path].move for path in self.paths[self.incoming[approach, lane]].after}

    def connectors(self, path: int) -> list[int]:
        """Return the ways through the junction that begin at the end of a path."""
        return [after for after in self.paths[path].after if self.paths[after].in_junction]
