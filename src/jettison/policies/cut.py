"""From scores to gates: close gates until a run costs what it may cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jettison.core.errors import UsageError, unknown
from jettison.core.progress import say
from jettison.policies.cascade import Graph, What

TOLERANCE = 0.0125  # of the pruned share, arXiv:2410.16942
Scores = Sequence[Sequence[float]]  # (calls, units): how much a computation matters


@dataclass(frozen=True)
class Cut:
    """The gates that were chosen.

    rows: open are exactly the units that are computed, (calls, units).
    pruned: the share of the FLOPs that they save.
    """

    rows: list[list[bool]]
    pruned: float


def cut(scores: Scores, ratio: float, graph: Graph, reuse: What = "output", how: str = "bisection") -> Cut:
    """Close the gates with the lowest scores until the share ``ratio`` of the FLOPs of a run is saved.

    scores: (calls, units). The gates of the first call stay open, whatever their scores.
    how: ``bisection`` as in the paper, or ``published`` as in the published code, for which scores are logits of the
        probability to keep.
    The result is the nearest that one threshold reaches; a note tells if it is off by more than 0.0125.
    Raises UsageError for a ratio that is not between 0 and what all closed gates save.
    """
    if how not in WAYS:
        raise unknown("way to cut", how, WAYS)
    closed = [[call == 0] * graph.units for call in range(len(scores))]
    most = graph.pruned(closed, reuse)
    if not 0 <= ratio <= most:
        raise UsageError(f"pruning ratio {ratio}: a number from 0 to {math.floor(most * 1e4) / 1e4} is needed")
    rows = WAYS[how](scores, ratio, graph, reuse)
    rows = [graph.computed(row, reuse) for row in rows]
    pruned = graph.pruned(rows, reuse)
    if abs(pruned - ratio) >= TOLERANCE:
        say(f"note: pruning ratio {ratio}: the nearest that these scores reach is {pruned:.4f}")
    return Cut(rows, pruned)


def _bisection(scores: Scores, ratio: float, graph: Graph, reuse: What) -> list[list[bool]]:
    """Bisect the thresholds at which a gate closes, and take the one whose pruned share is nearest."""
    levels = [-math.inf, *sorted({score for row in scores[1:] for score in row})]
    at = lambda level: [[call == 0 or score > levels[level] for score in row] for call, row in enumerate(scores)]
    pruned = lambda level: graph.pruned(at(level), reuse)
    low, high = 0, len(levels) - 1  # pruned(low) <= ratio <= pruned(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pruned(middle) <= ratio else (low, middle)
    return at(min(low, high, key=lambda level: abs(pruned(level) - ratio)))


def _published(scores: Scores, ratio: float, graph: Graph, reuse: What) -> list[list[bool]]:
    """Close gates from the last unit to the first, the most probable first, at thresholds 0.95, 0.90, ...

    A gate whose closing would exceed the ratio stays open.
    """
    rows = [[True] * graph.units for _ in scores]
    skip = [[1 / (1 + math.exp(min(score, 700))) for score in row] for row in scores]
    budget = len(rows) * graph.call * (1 - ratio)
    costs = [graph.row_cost(row, reuse) for row in rows]
    for hundredths in range(95, -1, -5):
        for unit in reversed(range(graph.units)):
            calls = [call for call in range(1, len(rows)) if rows[call][unit] and skip[call][unit] > hundredths / 100]
            for call in sorted(calls, key=lambda call: -skip[call][unit]):
                closed = [*rows[call][:unit], False, *rows[call][unit + 1 :]]
                cost = graph.row_cost(closed, reuse)
                if sum(costs) - costs[call] + cost >= budget:
                    rows[call], costs[call] = closed, cost
        if sum(costs) <= budget * (1 + 1e-9):
            break
    return rows


WAYS: dict[str, Callable[[Scores, float, Graph, What], list[list[bool]]]] = {
    "bisection": _bisection,
    "published": _published,
}
