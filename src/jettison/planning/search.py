"""Bits and group size for every unit: the least expected loss under time and memory.

A mixed-integer program (scipy's milp, which is HiGHS): one binary per group and choice, one choice per group, the
sums of seconds and of bytes within the budgets. Losses add up: what interactions do is left to refinement. The solver
stops by what is left unproven and by nodes, never by the clock, so that the same problem has the same answer under any
load.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from jettison.planning.groups import Choice, Unit

Picks = tuple[int, ...]  # the number of the choice, per group
GAP, NODES = 5e-3, 100  # where the solver stops: share of the objective left unproven, nodes of its tree
# How far apart two expected losses must be to be told apart, as a share of them and in nats per token. See
# docs/planning.md, "How it chooses", and tests/planning/test_ties.py, which holds both to what was measured.
ERROR_SHARE, ERROR_NATS = 0.04, 1e-4
TRIES = 100_000


@dataclass(frozen=True)
class Problem:
    """groups of units that share their choice, mostly of one, and per group its choices with the loss (nats per token),
    seconds and bytes of memory of each.

    rest: seconds and bytes of what bits do not change. time, memory: the budgets, inf for none.
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
        """group, loss, (seconds, bytes) of every binary."""
        groups = np.repeat(np.arange(len(self.groups)), [len(each) for each in self.choices])
        return groups, np.concatenate(self.losses), np.concatenate(self.costs)

    def loss(self, picks: Iterable[int]) -> float:
        return sum(losses[pick] for losses, pick in zip(self.losses, picks, strict=True))

    def cost(self, picks: Iterable[int]) -> np.ndarray:
        """Seconds of a step and bytes of memory, the rest included."""
        return np.array(self.rest) + sum(np.array(costs[pick]) for costs, pick in zip(self.costs, picks, strict=True))

    @property
    def budget(self) -> np.ndarray:
        return np.array([self.time, self.memory])

    def fits(self, picks: Picks) -> bool:
        return bool((self.cost(picks) <= self.budget * (1 + 1e-9)).all())

    def within(self, time: float = np.inf, memory: float = np.inf) -> "Problem":
        """The same problem under other budgets."""
        return replace(self, time=time, memory=memory)

    def assignment(self, picks: Picks) -> dict[Unit, Choice]:
        chosen = zip(self.groups, self.choices, picks, strict=True)
        return {unit: of[pick] for group, of, pick in chosen for unit in group}

    def picks(self, assignment: dict[Unit, Choice]) -> Picks:
        """The inverse of ``assignment``. Raises ValueError for a choice that is not open to its group."""
        return tuple(of.index(assignment[group[0]]) for group, of in zip(self.groups, self.choices, strict=True))


def search(problem: Problem) -> Picks | None:
    """The choices with the least sum of losses within the budgets; None if nothing fits. Never worse than greedy's."""
    candidates = [greedy(problem), _solve(problem, problem._flat[1])]
    return min((picks for picks in candidates if picks), key=problem.loss, default=None)


def quickest(problem: Problem, picks: Picks) -> Picks:
    """The choices with the least seconds among those that are expected to lose as much as ``picks``, but for the
    estimate's own error; ``picks`` where none is quicker."""
    loss, (_, losses, costs) = problem.loss(picks), problem._flat
    found = _solve(problem, costs[:, 0], losses, loss + max(ERROR_SHARE * loss, ERROR_NATS))
    return found if found and problem.cost(found)[0] < (1 - GAP) * problem.cost(picks)[0] else picks


def least(problem: Problem, what: int) -> Picks | None:
    """The choices with the least seconds (0) or bytes (1) within the budgets, for saying what would be feasible."""
    return _solve(problem, problem._flat[2][:, what])


def feasible(problem: Problem) -> bool:
    """Whether any choices are within the budgets."""
    smallest = tuple(min(range(len(each)), key=lambda pick: each[pick][1]) for each in problem.costs)
    return problem.fits(smallest) or least(problem, 1) is not None


def _solve(
    problem: Problem, objective: np.ndarray, limited: np.ndarray | None = None, limit: float = np.inf
) -> Picks | None:
    """The choices with the least sum of ``objective`` within the budgets, their sum of ``limited`` up to ``limit``."""
    groups, _, costs = problem._flat
    one_each = coo_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    if limited is not None:
        constraints.append(LinearConstraint(limited / limit, -np.inf, 1))
    for kind, budget in enumerate(problem.budget):
        if np.isfinite(budget):  # scaled, so that the solver's tolerance means the same for seconds and for bytes
            constraints.append(LinearConstraint(costs[:, kind] / budget, -np.inf, 1 - problem.rest[kind] / budget))
    scale = max(float(np.abs(objective).max()), 1e-30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the solver, when it stops early with a solution
        found = milp(
            objective / scale,
            constraints=constraints,
            integrality=np.ones(len(groups)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP, "node_limit": NODES},
        )
    if found.x is None:
        return None
    picks = tuple(int(found.x[groups == number].argmax()) for number in range(len(problem.groups)))
    return picks if problem.fits(picks) else None


def greedy(problem: Problem) -> Picks | None:
    """A baseline: from the least loss down, always the change that costs least for what it saves."""
    groups, losses, costs = problem._flat
    starts = np.searchsorted(groups, np.arange(len(problem.groups)))
    current = starts + [int(np.argmin(each)) for each in problem.losses]  # the binary that is 1, per group
    excess = lambda cost: np.maximum(cost / problem.budget - 1 - 1e-9, 0).sum(-1)  # how far over budget, as a share
    while excess(cost := problem.rest + costs[current].sum(0)) > 0:
        saved = excess(cost) - excess(cost + costs - costs[current][groups])
        if saved.max() <= 1e-15:
            return None
        price = (losses - losses[current][groups]) / np.where(saved > 1e-15, saved, np.nan)
        cheapest = int(np.nanargmin(price))
        current[groups[cheapest]] = cheapest
    return tuple(int(pick) for pick in current - starts)


def random_plan(problem: Problem, seed: int, tolerance: float = 0.02) -> Picks | None:
    """A baseline: any choices whose bytes are within ``tolerance`` below the memory budget. None if none was found."""
    rng = Random(seed)
    picks = [rng.randrange(len(of)) for of in problem.choices]
    memory = problem.cost(picks)[1]
    for _ in range(TRIES):
        if (1 - tolerance) * problem.memory <= memory <= problem.memory:
            return tuple(picks)
        number = rng.randrange(len(picks))
        other = rng.randrange(len(problem.choices[number]))
        change = problem.costs[number][other][1] - problem.costs[number][picks[number]][1]
        if (change > 0) == (memory < problem.memory):
            picks[number], memory = other, memory + change
    return None


def pareto(problem: Problem, points: int = 16) -> list[Picks]:
    """The front of loss against memory under the time budget, from the smallest plan to the one that loses least."""
    smallest = least(problem.within(time=problem.time), 1)
    if smallest is None:
        return []
    largest = search(problem.within(time=problem.time))
    low, high = (problem.cost(picks)[1] for picks in (smallest, largest))
    front: list[Picks] = []
    for memory in np.geomspace(low, high, points) if high > low else [low]:
        picks = search(problem.within(problem.time, memory * (1 + 1e-9)))
        if not front or problem.loss(picks) < problem.loss(front[-1]):  # a search that is cut short may find no better
            front.append(picks)
    return front
