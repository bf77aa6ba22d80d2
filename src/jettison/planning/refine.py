"""Evolution around the optimum by measurement: what a sum of losses cannot see."""

from random import Random

from jettison.core.progress import bar
from jettison.planning.search import Picks, Problem
from jettison.statistics.sensitivity import Bench

PARENTS = 8


def refine(problem: Problem, start: Picks, bench: Bench, evaluations: int, seed: int = 0) -> tuple[Picks, list[float]]:
    """The best of ``evaluations`` measured plans that fit the budget: ``start``, then children of the best so far.

    A child changes one unit and pays with another, or trades the choices of two units of a parent, so that it stays
    close to the budget. bench: measures KL, on text that the losses were not found on. Returns the choices, and the KL
    measured for each plan that was tried. Our reconstruction: the paper names no refinement.
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
    """KL of the whole plan, nats per token."""
    chosen = problem.assignment(picks)
    with bench.changed((linear, choice.grid) for unit, choice in chosen.items() for linear in unit.linears):
        return bench.divergence()


def _child(problem: Problem, measured: dict[Picks, float], rng: Random) -> Picks | None:
    """A plan that fits and was not measured yet; one with less expected loss is taken sooner."""
    parents = sorted(measured, key=measured.get)[:PARENTS]
    best: Picks | None = None
    found = 0
    for _ in range(2000):
        picks = list(rng.choice(parents))
        for number in rng.sample(range(len(picks)), 2):
            picks[number] = rng.randrange(len(problem.choices[number]))
        child = tuple(picks)
        if child in measured or not problem.fits(child):
            continue
        found += 1
        if best is None or problem.loss(child) < problem.loss(best):
            best = child
        if found == 24:
            break
    return best
