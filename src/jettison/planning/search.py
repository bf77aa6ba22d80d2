"""The search for bits and group size of every unit: the least expected loss within a time and a memory budget.

It is a mixed-integer program (scipy's milp, which is HiGHS): one binary variable per group and choice, one choice per
group, the sums of seconds and of bytes within the budgets. Losses are assumed to add up; interactions are left to
refinement. The solver stops by its remaining gap and by its number of nodes, never by time, so that a problem has the
same answer under any load.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np

from jettison.planning.groups import Choice, Unit

Picks = tuple[int, ...]  # per group, the index of its choice
GAP, NODES = 5e-3, 100  # where the solver stops: relative gap of the objective, nodes of its tree
# Two expected losses that differ by less than these, as a share and in nats per token, cannot be told apart. See
# docs/reference/planner.md, "Ties"; tests/planning/test_ties.py checks both values against measurements.
ERROR_SHARE, ERROR_NATS = 0.04, 1e-4
TRIES = 100_000  # random changes that random_plan makes at most


@dataclass(frozen=True)
class Problem:
    """The problem to solve: groups of units, their choices, what each choice costs and loses, and the budgets.

    groups: the units of a group share their choice; most groups have one unit.
    choices: per group, the choices that are open to it.
    losses: per group and choice, the expected loss in nats per token.
    costs: per group and choice, seconds of a step and bytes of memory.
    rest: seconds and bytes of everything that no choice changes.
    time, memory: the budgets in seconds per step and bytes; inf for none.
    """

    groups: tuple[tuple[Unit, ...], ...]
    choices: tuple[tuple[Choice, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    costs: tuple[tuple[tuple[float, float], ...], ...]
    rest: tuple[float, float]
    time: float = np.inf
    memory: float = np.inf

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index of the group, loss, and (seconds, bytes) of every binary variable."""
        groups = np.repeat(np.arange(len(self.groups)), [len(of_group) for of_group in self.choices])
        return groups, np.concatenate(self.losses), np.concatenate(self.costs)

    def loss(self, picks: Iterable[int]) -> float:
        """Return the sum of the expected losses, in nats per token."""
        return sum(losses[pick] for losses, pick in zip(self.losses, picks, strict=True))

    def cost(self, picks: Iterable[int]) -> np.ndarray:
        """Return (seconds of a step, bytes of memory), including everything that no choice changes."""
        return np.array(self.rest) + sum(np.array(costs[pick]) for costs, pick in zip(self.costs, picks, strict=True))

    @property
    def budget(self) -> np.ndarray:
        """The budgets as (seconds, bytes)."""
        return np.array([self.time, self.memory])

    def fits(self, picks: Picks) -> bool:
        """Return whether the choices meet both budgets."""
        return bool((self.cost(picks) <= self.budget * (1 + 1e-9)).all())

    def within(self, time: float = np.inf, memory: float = np.inf) -> "Problem":
        """Return the same problem under other budgets."""
        return replace(self, time=time, memory=memory)

    def assignment(self, picks: Picks) -> dict[Unit, Choice]:
        """Return the choice of every unit."""
        chosen = zip(self.groups, self.choices, picks, strict=True)
        return {unit: of[pick] for group, of, pick in chosen for unit in group}

    def picks(self, assignment: dict[Unit, Choice]) -> Picks:
        """Return the indices of an assignment's choices. Raises ValueError for one that its group does not have."""
        return tuple(of.index(assignment[group[0]]) for group, of in zip(self.groups, self.choices, strict=True))


def search(problem: Problem) -> Picks | None:
    """Return the choices with the least sum of losses within the budgets, never worse than those of ``greedy``.

    None if no choices are found that fit.
    """
    candidates = [greedy(problem), _solve(problem, problem._flat[1])]
    return min((picks for picks in candidates if picks), key=problem.loss, default=None)


def quickest(problem: Problem, picks: Picks) -> Picks:
    """Return the fastest choices whose expected loss cannot be told apart from that of ``picks``.

    Losses count as equal within ERROR_SHARE and ERROR_NATS, the error of the estimates. Returns ``picks`` if none is
    faster by more than the solver's gap.
    """
    loss, (_, losses, costs) = problem.loss(picks), problem._flat
    fastest = _solve(problem, costs[:, 0], losses, loss + max(ERROR_SHARE * loss, ERROR_NATS))
    return fastest if fastest and problem.cost(fastest)[0] < (1 - GAP) * problem.cost(picks)[0] else picks


def least(problem: Problem, what: int) -> Picks | None:
    """Return the choices with the least seconds (``what`` 0) or bytes (1) within the budgets, or None.

    Messages use it to say what would be feasible.
    """
    return _solve(problem, problem._flat[2][:, what])


def feasible(problem: Problem) -> bool:
    """Return whether any choices are within the budgets."""
    smallest = tuple(min(range(len(costs)), key=lambda pick: costs[pick][1]) for costs in problem.costs)
    return problem.fits(smallest) or least(problem, 1) is not None


def _solve(
    problem: Problem, objective: np.ndarray, limited: np.ndarray | None = None, limit: float = np.inf
) -> Picks | None:
    """Return the choices with the least sum of ``objective`` within the budgets, or None if none are found.

    objective: (binaries,), what to minimize.
    limited: (binaries,), values whose sum must not exceed ``limit``; None for no such constraint.
    """
    # Imported here since the import takes half of a plan's import time, and a refused request needs no solver.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    groups, _, costs = problem._flat
    one_each = coo_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    if limited is not None:
        constraints.append(LinearConstraint(limited / limit, -np.inf, 1))
    for kind, budget in enumerate(problem.budget):
        if np.isfinite(budget):  # scaled by the budget, so that the solver's tolerance suits seconds and bytes alike
            constraints.append(LinearConstraint(costs[:, kind] / budget, -np.inf, 1 - problem.rest[kind] / budget))
    scale = max(float(np.abs(objective).max()), 1e-30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver warns when it stops early with a solution
        solution = milp(
            objective / scale,
            constraints=constraints,
            integrality=np.ones(len(groups)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )
    if solution.x is None:
        return None
    picks = tuple(int(solution.x[groups == number].argmax()) for number in range(len(problem.groups)))
    return picks if problem.fits(picks) else None


def greedy(problem: Problem) -> Picks | None:
    """Return the choices of a greedy baseline, or None if it does not reach the budgets.

    It starts from the choices with the least loss, and makes the change with the least loss per saved excess over the
    budgets until they are met.
    """
    groups, losses, costs = problem._flat
    starts = np.searchsorted(groups, np.arange(len(problem.groups)))
    current = starts + [int(np.argmin(losses_of)) for losses_of in problem.losses]  # per group, the binary that is 1
    excess = lambda cost: np.maximum(cost / problem.budget - 1 - 1e-9, 0).sum(-1)  # relative excess over the budgets
    while excess(cost := problem.rest + costs[current].sum(0)) > 0:
        saved = excess(cost) - excess(cost + costs - costs[current][groups])
        if saved.max() <= 1e-15:  # no change brings the cost closer to the budgets
            return None
        price = (losses - losses[current][groups]) / np.where(saved > 1e-15, saved, np.nan)
        cheapest = int(np.nanargmin(price))
        current[groups[cheapest]] = cheapest
    return tuple(int(pick) for pick in current - starts)


def random_plan(problem: Problem, seed: int, tolerance: float = 0.02) -> Picks | None:
    """Return the choices of a random baseline, or None if none is found in TRIES changes.

    The bytes of the choices are at most ``tolerance`` (a share) below the memory budget, and not above it.
    """
    rng = Random(seed)
    picks = [rng.randrange(len(of)) for of in problem.choices]
    memory = problem.cost(picks)[1]
    for _ in range(TRIES):
        if (1 - tolerance) * problem.memory <= memory <= problem.memory:
            return tuple(picks)
        number = rng.randrange(len(picks))
        other = rng.randrange(len(problem.choices[number]))
        change = problem.costs[number][other][1] - problem.costs[number][picks[number]][1]
        if (change > 0) == (memory < problem.memory):  # take only changes towards the budget
            picks[number], memory = other, memory + change
    return None


def pareto(problem: Problem, points: int = 16) -> list[Picks]:
    """Return the Pareto front of memory and loss under the time budget, from the smallest plan to the least loss.

    points: number of memory budgets that are searched; empty if no plan meets the time budget.
    """
    smallest = least(problem.within(time=problem.time), 1)
    if smallest is None:
        return []
    largest = search(problem.within(time=problem.time))
    low, high = (problem.cost(picks)[1] for picks in (smallest, largest))
    front: list[Picks] = []
    for memory in np.geomspace(low, high, points) if high > low else [low]:
        picks = search(problem.within(problem.time, memory * (1 + 1e-9)))
        if not front or problem.loss(picks) < problem.loss(front[-1]):  # a search that stops early may not improve
            front.append(picks)
    return front
