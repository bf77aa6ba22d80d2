"""Refinement: an evolutionary search around the best plan by measured KL, which also sees how losses interact."""

from random import Random

from jettison.core.progress import bar
from jettison.planning.search import Picks, Problem
from jettison.statistics.sensitivity import Bench

PARENTS = 8


def refine(problem: Problem, start: Picks, bench: Bench, evaluations: int, seed: int = 0) -> tuple[Picks, list[float]]:
    """Measure ``evaluations`` plans that fit the budget and take the best: ``start``, then children of the best so far.

    A child is a parent with new choices for two units, so that one can pay for the other and the cost stays close to
    the budget.
    bench: measures KL, on text that was not used to find the expected losses.
    Returns the best plan's choices, and the KL of every plan that was tried. Our reconstruction: the paper names no
    refinement.
    """
    rng = Random(seed)
    measured: dict[Picks, float] = {}
    history: list[float] = []
    with bar("refine", evaluations) as progress:
        for _ in range(evaluations):
            picks = start if not measured else _child(problem, measured, rng)
            if picks is None:
                break
            measured[picks] = measure(problem, picks, bench)
            history.append(measured[picks])
            progress.advance(note=f"KL {min(history):.4f}")
    return min(measured, key=measured.get), history


def measure(problem: Problem, picks: Picks, bench: Bench) -> float:
    """Measure the KL of the whole plan from the original, in nats per token."""
    chosen = problem.assignment(picks)
    with bench.changed((linear, choice.grid) for unit, choice in chosen.items() for linear in unit.linears):
        return bench.divergence()


def _child(problem: Problem, measured: dict[Picks, float], rng: Random) -> Picks | None:
    """Return a child that fits the budget and was not measured: of up to 24, the one with the least expected loss.

    None if 2000 tries give none.
    """
    parents = sorted(measured, key=measured.get)[:PARENTS]
    best: Picks | None = None
    valid = 0
    for _ in range(2000):
        picks = list(rng.choice(parents))
        for number in rng.sample(range(len(picks)), 2):
            picks[number] = rng.randrange(len(problem.choices[number]))
        child = tuple(picks)
        if child in measured or not problem.fits(child):
            continue
        valid += 1
        if best is None or problem.loss(child) < problem.loss(best):
            best = child
        if valid == 24:
            break
    return best
