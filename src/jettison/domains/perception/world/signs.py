"""Signs and traffic lights: which there are, where they stand, and for which lanes they hold."""

from dataclasses import dataclass

import numpy as np

from jettison.domains.perception.scenes import ATTRIBUTES, LIGHT, SIGN
from jettison.domains.perception.world.network import SLIGHT, Approach, Junction, Network, move_of, turn_of
from jettison.domains.perception.world.solids import Board, Solid
from jettison.domains.perception.world.streets import Hills, Street

LAMP, ROUND = (0.27, 0.7), (0.5, 0.5)  # half width and height of a light, and of a sign
GREY = (0.42, 0.43, 0.45)
FORBIDDEN = {"no_left_turn": "left", "no_right_turn": "right"}
STATES = ("green", "red", "yellow", "unknown")  # of the main street's light; unknown is off


@dataclass(frozen=True)
class Rule:
    """A sign before a junction. lanes: the lanes of the approach for which it holds. bans: moves that it forbids."""

    attribute: str
    approach: int
    lanes: tuple[int, ...]
    bans: tuple[str, ...] = ()
    overhead: bool = False


@dataclass(frozen=True, eq=False)
class Element:
    """A traffic element: a light or a sign that stands in the world.

    attribute: index into ``ATTRIBUTES``. paths: numbers of the paths of the network for which it holds.
    """

    attribute: int
    category: int
    board: Board
    paths: tuple[int, ...]


def make_rules(rng: np.random.Generator, streets: list[Street], junction: Junction) -> list[Rule]:
    """Draw the signs of every approach. They leave every lane at least one way to go."""
    rules = []
    approaches = junction.approaches()
    for number, approach in enumerate(approaches):
        street = streets[approach.street]
        lanes = tuple(range(street.forward if approach.sign > 0 else street.backward))
        angles = [turn_of(streets, approach, leave) for leave in approaches if leave is not approach]
        turns = {move_of(angle): angle for angle in angles}
        rules += _of_approach(rng, number, lanes, turns)
    return rules


def _of_approach(
    rng: np.random.Generator, approach: int, lanes: tuple[int, ...], turns: dict[str, float]
) -> list[Rule]:
    draw, rules = rng.random(), []
    others = lambda move: tuple(name for name in turns if name != move)
    if len(lanes) > 1 and "straight" in turns and draw < 0.55:  # an arrow over every lane
        for lane in lanes:
            side = "left" if lane == 0 else "right" if lane == lanes[-1] else ""
            move = side if side in turns and rng.random() < 0.6 else "straight"
            rules.append(Rule(_arrow(move, turns), approach, (lane,), others(move), True))
    elif draw < 0.85 and len(turns) > 1:
        others_left = "straight" in turns or len(lanes) == 1  # else the lane of that turn would have no way to go
        options = [name for name, move in FORBIDDEN.items() if move in turns and others_left]
        if "straight" in turns and len(lanes) == 1:
            options += ["go_straight"]
        elif len(lanes) == 1:
            options += [_arrow(move, turns) for move in turns]
        name = options[rng.integers(len(options))] if options else ""
        if name in FORBIDDEN:
            rules.append(Rule(name, approach, lanes, (FORBIDDEN[name],)))
        elif name:
            move = next(move for move in turns if _arrow(move, turns) == name)
            rules.append(Rule(name, approach, lanes, others(move)))
    if rng.random() < 0.45:
        rules.append(Rule(("u_turn", "no_u_turn")[rng.integers(2)], approach, lanes[:1]))
    return rules


def _arrow(move: str, turns: dict[str, float]) -> str:
    """The attribute of the arrow for a move."""
    if move == "straight":
        return "go_straight"
    return f"slight_{move}" if abs(turns[move]) < SLIGHT else f"turn_{move}"


def bans(rules: list[Rule]) -> set[tuple[int, int, str]]:
    """Return what signs forbid, as ``Network`` takes it."""
    return {(rule.approach, lane, move) for rule in rules for lane in rule.lanes for move in rule.bans}


def u_turns(rules: list[Rule]) -> set[int]:
    """Return the numbers of the approaches where a sign allows to turn back."""
    return {rule.approach for rule in rules if rule.attribute == "u_turn"}


class Furniture:
    """Puts up the signs and lights of a world, with their posts. ``elements`` and ``solids`` are the result."""

    def __init__(self, hills: Hills, streets: list[Street]):
        """Begin with none."""
        self.hills, self.streets = hills, streets
        self.elements: list[Element] = []
        self.solids: list[Solid] = []

    def put(
        self, attribute: str, approach: Approach, s: float, d: float, height: float, half: tuple, paths: list[int]
    ) -> None:
        """Put up a light or a sign that faces the traffic of an approach. height: of its middle, metres."""
        street = self.streets[approach.street]
        point = self.hills.lift(street.at(s, d))[0] + (0, 0, height)
        heading = approach.sign * street.heading(approach.stop)
        yaw = float(np.arctan2(-heading[1], -heading[0]))
        board = Board(point, half, yaw, attribute, len(self.elements))
        category = LIGHT if half is LAMP else SIGN
        self.elements.append(Element(ATTRIBUTES.index(attribute), category, board, tuple(paths)))
        self.solids.append(board)

    def post(self, street: Street, s: float, d: float, height: float, half: float = 0.06) -> None:
        """Put up a post. d: metres to the left of the reference line."""
        base = self.hills.lift(street.at(s, d))[0]
        self.solids.append(
            Solid(base + np.array([0, 0, height / 2 - 0.2]), (half, half, height / 2 + 0.2), 0, "post", GREY)
        )

    def beam(self, street: Street, s: float, left: float, right: float, height: float) -> None:
        """Put a beam across a street, from offset ``left`` to ``right``. height: metres above the ground."""
        a, b = self.hills.lift(street.at(s, np.array([left, right])))
        across = b - a
        centre = (a + b) / 2 + (0, 0, height)
        half = (np.linalg.norm(across) / 2, 0.09, 0.09 + abs(across[2]) / 2)
        self.solids.append(Solid(centre, half, float(np.arctan2(across[1], across[0])), "post", GREY))

    def light(self, state: str, approach: Approach, beyond: float, paths: list[int]) -> None:
        """Put up the two lights of an approach, over its lanes and on the post.

        beyond: s behind the junction where they stand.
        """
        street, sign = self.streets[approach.street], approach.sign
        count = street.forward if sign > 0 else street.backward
        edge = -sign * (count * street.lane + street.shoulder + 0.9)
        middle = -sign * count * street.lane / 2
        before = beyond - sign * 0.3
        self.post(street, beyond, edge, 6.0, 0.09)
        self.beam(street, beyond, middle + sign * 0.6, edge, 5.6)
        self.put(state, approach, before, middle, 5.5, LAMP, paths)
        self.put(state, approach, before, edge, 3.2, LAMP, paths)

    def rule(self, rule: Rule, approach: Approach, network: Network, place: int) -> None:
        """Put up a sign before the junction. place: how many signs of this approach have a post already."""
        street, sign = self.streets[approach.street], approach.sign
        count = street.forward if sign > 0 else street.backward
        incoming = [network.incoming[rule.approach, lane] for lane in rule.lanes]
        paths = [*incoming, *(after for path in incoming for after in network.connectors(path))]
        edge = -sign * (count * street.lane + street.shoulder + 0.8)
        if rule.overhead:
            s = approach.stop - sign * 3.0
            if rule.lanes[0] == 0:
                self.post(street, s, edge, 6.4, 0.1)
                self.beam(street, s, sign * 0.3, edge, 6.2)
            middle = street.lane_middle(rule.lanes[0] if sign > 0 else ~rule.lanes[0])
            self.put(rule.attribute, approach, s - sign * 0.25, middle, 5.5, (0.65, 0.65), paths)
            return
        s = approach.stop - sign * (1.0 + 7.0 * place)
        self.post(street, s, edge, 3.0)
        self.put(rule.attribute, approach, s - sign * 0.12, edge, 2.5, ROUND, paths)
