"""Cascades, costs and the cut from scores to gates."""

import itertools

import pytest

from jettison.core.errors import UsageError
from jettison.core.progress import set_quiet
from jettison.policies.cascade import Graph
from jettison.policies.cut import TOLERANCE, cut
from jettison.policies.random_skip import random_scores

CHAIN = Graph(tuple(map(frozenset, ([1], [2], [3], []))), frozenset([3]), (1, 2, 3, 4), 2)
# SD 1.5: down 0 to 3, middle 4, up 5 to 8; down i also feeds the up blocks that read its skips
UNET = Graph(
    tuple(map(frozenset, ([1, 7, 8], [2, 6, 7], [3, 5, 6], [4, 5], [5], [6], [7], [8], []))),
    frozenset([8]),
    (7,) * 9,
    1,
)
BIG_CHAIN = Graph(
    tuple(frozenset([unit + 1] if unit < 11 else []) for unit in range(12)), frozenset([11]), (10,) * 12, 3
)


def reads(graph, row):
    """The units that are computed, found another way: forward from each unit, along readers that are computed."""
    result = []
    for unit in range(graph.units):
        paths, reached = [unit], set()
        while paths:
            at = paths.pop()
            if row[at] and at not in reached:
                reached.add(at)
                paths += graph.readers[at]
        result.append(bool(row[unit] and reached & graph.outside))
    return result


@pytest.mark.parametrize("graph", [CHAIN, UNET])
def test_a_unit_is_computed_iff_computed_units_lead_to_the_end(graph):
    for row in itertools.product([False, True], repeat=graph.units):
        assert graph.computed(row) == reads(graph, row)


def test_cascades_of_a_chain_and_of_skips():
    assert CHAIN.computed([True, True, False, True]) == [False, False, False, True]
    assert CHAIN.computed([True, True, False, True], "residual") == [True, True, False, True]
    closed_up = [unit != 7 for unit in range(9)]  # only the last up block is left, and what its skips read
    assert UNET.computed(closed_up) == [True, *[False] * 7, True]
    closed_middle = [unit != 4 for unit in range(9)]  # the skips keep the way down alive
    assert UNET.computed(closed_middle) == closed_middle
    assert CHAIN.shares() == pytest.approx([0.1, 0.3, 0.6, 1.0])
    assert CHAIN.shares("residual") == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert CHAIN.cost([[True] * 4, [True, True, False, True]]) == 12 + 6
    assert CHAIN.pruned([[True] * 4, [False] * 4]) == pytest.approx(10 / 24)


@pytest.mark.parametrize("graph", [UNET, BIG_CHAIN], ids=["unet", "chain"])
@pytest.mark.parametrize("how", ["bisection", "published"])
@pytest.mark.parametrize("reuse", ["output", "residual"])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.4, 0.6, 0.75])
def test_the_ratio_is_met(graph, how, reuse, ratio):
    scores = [[8 * score - 4 for score in row] for row in random_scores(60, graph.units, seed=3)]
    result = cut(scores, ratio, graph, reuse, how)
    assert result.pruned == pytest.approx(graph.pruned(result.rows, reuse))
    assert abs(result.pruned - ratio) < TOLERANCE
    assert all(result.rows[0])
    if how == "published":
        assert result.pruned <= ratio + 1e-9
    for row in result.rows:  # what is not computed anyway is closed
        assert row == graph.computed(row, reuse)


def test_bisection_keeps_the_higher_scores():
    scores = random_scores(10, 4, seed=1)
    result = cut(scores, 0.5, CHAIN, "residual")
    pairs = [pair for call in range(1, 10) for pair in zip(scores[call], result.rows[call], strict=True)]
    open_scores, closed = ([score for score, gate in pairs if gate == kept] for kept in (True, False))
    assert min(open_scores) > max(closed)


def test_where_no_threshold_hits_the_nearest_is_told(capfd):
    """Equal scores close together, so that only nothing and everything can be reached."""
    set_quiet(False)
    try:
        result = cut([[1.0] * 4] * 3, 0.3, CHAIN)
    finally:
        set_quiet(True)
    assert result.pruned == pytest.approx(20 / 36)
    assert "pruning ratio 0.3: the nearest that these scores reach is 0.5556" in "".join(capfd.readouterr())


@pytest.mark.parametrize("ratio", [-0.1, 0.9, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UsageError, match="pruning ratio .* a number from 0 to 0.5555 is needed"):
        cut([[1.0] * 4] * 3, ratio, CHAIN)
    with pytest.raises(UsageError, match="unknown way to cut"):
        cut([[1.0] * 4] * 3, 0.2, CHAIN, how="bisect")
