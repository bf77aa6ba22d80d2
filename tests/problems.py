"""A small problem for the planner's search."""

import numpy as np

from jettison.planning.groups import Choice, Unit
from jettison.planning.search import Problem


def problem(seed=0, units=6, of=4, **budget):
    """Return a random problem in which a choice with fewer bytes usually has more loss.

    of: number of choices of every unit.
    """
    rng = np.random.default_rng(seed)
    groups = tuple((Unit(f"u{number}", "o", number, ()),) for number in range(units))
    losses = np.sort(rng.random((units, of)), axis=1)
    costs = np.stack([np.sort(rng.random((units, of)), axis=1)[:, ::-1] for _ in range(2)], -1)
    return Problem(
        groups, tuple((tuple(Choice(8 - pick, 32) for pick in range(of)),) * units), tuple(map(tuple, losses)),
        tuple(tuple(map(tuple, unit)) for unit in costs), (0.5, 0.25), **budget,
    )  # fmt: skip
