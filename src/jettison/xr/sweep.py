"""Many runs: scenarios by accelerators by schedulers, each over seeds, through the one ``map``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from jettison.core import parallel
from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.dispatch import check_scheduler
from jettison.xr.frames import check_run
from jettison.xr.scores import Summary, benchmark_score, check_penalty, expected_score, score, summary
from jettison.xr.simulator import check_compat, simulate

MOST_SEEDS = 1_000_000
CHUNK = 25  # seeds that one job goes through


@dataclass(frozen=True)
class Job:
    """Some seeds of one cell; no seeds: the exact expectation of the official runtime."""

    scenario: Scenario
    costs: Costs
    scheduler: str
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    penalty: str = "code"

    def __repr__(self) -> str:
        return f"{self.scenario.name} on {', '.join(self.costs.units)}, {self.scheduler}"


@dataclass(frozen=True)
class Cell:
    """scores: one of each seed, 0 to 100. drop_rate: the mean. summary: None of an exact expectation."""

    scenario: str
    column: str
    scheduler: str
    mean: float
    std: float
    drop_rate: float | None
    summary: Summary | None
    scores: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def vary(scenarios: Sequence[Scenario], probabilities: Mapping[str, Sequence[float]]) -> list[Scenario]:
    """Each scenario with every combination of probabilities. probabilities: model -> some, each a chance that a frame
    of it is asked for, as in figure 7 of the paper. A scenario is named after what was changed in it (``vr-gaming, GE
    0.25``); one without these models stays as it is. Raises UsageError for a model that none of them has, and for what
    is no probability.
    """
    there = list(dict.fromkeys(task.name for scenario in scenarios for task in scenario.tasks))
    for model in probabilities:
        if model not in there:
            raise unknown("model", model, there, f" of {', '.join(scenario.name for scenario in scenarios)}")
    found = []
    for scenario in scenarios:
        names = [task.name for task in scenario.tasks if task.name in probabilities]
        for chances in product(*(dict.fromkeys(probabilities[name]) for name in names)):
            changed = scenario
            for name, chance in zip(names, chances, strict=True):
                changed = changed.changed(name, probability=chance)
            said = [f"{name} {chance:g}" for name, chance in zip(names, chances, strict=True)]
            found.append(replace(changed, name=", ".join([scenario.name, *said])))
    return found


def run_job(job: Job) -> list[tuple[float, float]]:
    """(score, drop rate) of each seed."""
    found = []
    for seed in job.seeds:
        timeline = simulate(job.scenario, job.costs, scheduler=job.scheduler, seed=seed, **job.options)
        found.append((score(timeline, drop_penalty=job.penalty).overall, timeline.drop_rate))
    return found


def run_exact(job: Job) -> tuple[float, float]:
    exact = expected_score(job.scenario, job.costs, job.scheduler, drop_penalty=job.penalty)
    return exact.mean, exact.std


def sweep(
    scenarios: Sequence[Scenario],
    columns: Mapping[str, Mapping[str, Costs]],
    *,
    schedulers: Sequence[str] = ("latency-greedy",),
    seeds: int = 20,
    exact: bool = False,
    drop_penalty: str = "code",
    workers: int = 1,
    address: str | None = None,
    **options: Any,
) -> list[Cell]:
    """Every scenario on every column under every scheduler. columns: a name, such as an accelerator's or a recipe's, ->
    scenario name -> costs. seeds: 0, 1, ... in each cell. exact: no seeds but all outcomes of the coins (``compat``
    v0.1). options: of ``simulate``. The result does not depend on the number of workers.
    """
    check_sweep(schedulers, seeds, exact, drop_penalty, workers, address, options)
    places = list(product(scenarios, columns, schedulers))
    if not places:
        raise UsageError("a sweep of no scenarios, columns or schedulers; one of each at least is needed")
    make = lambda place, some: Job(place[0], columns[place[1]][place[0].name], place[2], some, options, drop_penalty)
    cells = []
    if exact:
        found = parallel.map(run_exact, [make(place, ()) for place in places], workers, address, "sweep")
        for (scenario, column, scheduler), (mean, std) in zip(places, found, strict=True):
            cells.append(Cell(scenario.name, column, scheduler, mean, std, None, None, ()))
        return cells
    chunks = [tuple(range(first, min(first + CHUNK, seeds))) for first in range(0, seeds, CHUNK)]
    results = iter(
        parallel.map(run_job, [make(place, chunk) for place in places for chunk in chunks], workers, address, "sweep")
    )
    for scenario, column, scheduler in places:
        pairs = [pair for _ in chunks for pair in next(results)]
        scores, drops = zip(*pairs, strict=True)
        told = summary(scores)
        cells.append(Cell(scenario.name, column, scheduler, told.mean, told.std, sum(drops) / len(drops), told, scores))
    return cells


def check_sweep(
    schedulers: Sequence[str], seeds: int, exact: bool, penalty: str, workers: int, address: str | None,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Raises UsageError for options of ``sweep`` that are not valid."""
    compat = options.get("compat")
    if exact and compat != "v0.1":
        raise UsageError("exact = True: only the official runtime (compat v0.1) has outcomes to go through; use seeds")
    check_compat(compat, options.get("preempt", False))
    check_number("seeds", seeds, 1, MOST_SEEDS, whole=True)
    check_run(options.get("horizon_ms", 1.0), 0)
    check_penalty(penalty)
    parallel.check_workers(workers, address)
    for scheduler in schedulers:
        check_scheduler(scheduler)


def table(cells: Sequence[Cell], mean: bool = True) -> tuple[list[str], list[str], list[list[float]]]:
    """(row names, column names, means): scenarios by columns (and schedulers, if several), and the benchmark's mean
    last; not without ``mean``, as where some rows are of one scenario."""
    several = len({cell.scheduler for cell in cells}) > 1
    name = lambda cell: f"{cell.column}, {cell.scheduler}" if several else cell.column
    rows, columns = list(dict.fromkeys(c.scenario for c in cells)), list(dict.fromkeys(map(name, cells)))
    means = {(cell.scenario, name(cell)): cell.mean for cell in cells}
    found = [[means[row, column] for column in columns] for row in rows]
    if mean and len(rows) > 1:
        found.append([benchmark_score(row[place] for row in found) for place in range(len(columns))])
        rows = [*rows, "mean"]
    return rows, columns, found
