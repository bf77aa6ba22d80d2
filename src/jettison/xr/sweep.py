"""A sweep: every scenario on every accelerator under every scheduler, over many seeds, with ``core.parallel.map``."""

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
CHUNK = 25  # seeds per job


@dataclass(frozen=True)
class Job:
    """A part of a cell's work: some of its seeds. Without seeds, the exact expectation of the official runtime."""

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
    """The result of one scenario on one column under one scheduler.

    mean, std: of the overall score, 0 to 100.
    drop_rate: mean over the seeds; None for an exact expectation.
    summary: None for an exact expectation.
    scores: overall score of every seed; empty for an exact expectation.
    """

    scenario: str
    column: str
    scheduler: str
    mean: float
    std: float
    drop_rate: float | None
    summary: Summary | None
    scores: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as a dict for JSON."""
        return asdict(self)


def vary(scenarios: Sequence[Scenario], probabilities: Mapping[str, Sequence[float]]) -> list[Scenario]:
    """Return every scenario with every combination of probabilities, as in figure 7 of the paper.

    probabilities: model -> probabilities that a frame of it is requested.
    A changed scenario is named after its changes (``vr-gaming, GE 0.25``); a scenario without these models stays as it
    is. Raises UsageError for a model that no scenario has, and for an invalid probability.
    """
    models = list(dict.fromkeys(task.name for scenario in scenarios for task in scenario.tasks))
    for model in probabilities:
        if model not in models:
            raise unknown("model", model, models, f" of {', '.join(scenario.name for scenario in scenarios)}")
    variants = []
    for scenario in scenarios:
        names = [task.name for task in scenario.tasks if task.name in probabilities]
        for combination in product(*(dict.fromkeys(probabilities[name]) for name in names)):
            changed = scenario
            for name, probability in zip(names, combination, strict=True):
                changed = changed.changed(name, probability=probability)
            labels = [f"{name} {probability:g}" for name, probability in zip(names, combination, strict=True)]
            variants.append(replace(changed, name=", ".join([scenario.name, *labels])))
    return variants


def run_job(job: Job) -> list[tuple[float, float]]:
    """Simulate every seed of a job. Returns (overall score, drop rate) per seed."""
    pairs = []
    for seed in job.seeds:
        timeline = simulate(job.scenario, job.costs, scheduler=job.scheduler, seed=seed, **job.options)
        pairs.append((score(timeline, drop_penalty=job.penalty).overall, timeline.drop_rate))
    return pairs


def run_exact(job: Job) -> tuple[float, float]:
    """Return mean and standard deviation of the score over all outcomes of the official runtime."""
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
    """Score every scenario on every column under every scheduler.

    columns: name of the column, such as an accelerator's or a recipe's -> scenario name -> costs.
    seeds: number of runs in every cell, with the seeds 0, 1, ...
    exact: compute the expectation over all outcomes of the coins instead (only with ``compat`` v0.1).
    workers, address: see ``core.parallel.map``. The result does not depend on them.
    options: of ``simulate``.
    Returns one cell per combination, in the order of the arguments. Raises UsageError.
    """
    check_sweep(schedulers, seeds, exact, drop_penalty, workers, address, options)
    combinations = list(product(scenarios, columns, schedulers))
    if not combinations:
        raise UsageError("a sweep of no scenarios, columns or schedulers; at least one of each is needed")
    make_job = lambda key, part: Job(key[0], columns[key[1]][key[0].name], key[2], part, options, drop_penalty)
    cells = []
    if exact:
        results = parallel.map(run_exact, [make_job(key, ()) for key in combinations], workers, address, "sweep")
        for (scenario, column, scheduler), (mean, std) in zip(combinations, results, strict=True):
            cells.append(Cell(scenario.name, column, scheduler, mean, std, None, None, ()))
        return cells
    chunks = [tuple(range(first, min(first + CHUNK, seeds))) for first in range(0, seeds, CHUNK)]
    results = iter(
        parallel.map(
            run_job, [make_job(key, chunk) for key in combinations for chunk in chunks], workers, address, "sweep"
        )
    )
    for scenario, column, scheduler in combinations:
        pairs = [pair for _ in chunks for pair in next(results)]
        scores, drops = zip(*pairs, strict=True)
        stats = summary(scores)
        cells.append(
            Cell(scenario.name, column, scheduler, stats.mean, stats.std, sum(drops) / len(drops), stats, scores)
        )
    return cells


def check_sweep(
    schedulers: Sequence[str], seeds: int, exact: bool, penalty: str, workers: int, address: str | None,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Raise UsageError for invalid options of ``sweep``."""
    compat = options.get("compat")
    if exact and compat != "v0.1":
        raise UsageError(
            "exact = True: only the outcomes of the official runtime (compat v0.1) can be enumerated; use seeds"
        )
    check_compat(compat, options.get("preempt", False))
    check_number("seeds", seeds, 1, MOST_SEEDS, whole=True)
    check_run(options.get("horizon_ms", 1.0), 0)
    check_penalty(penalty)
    parallel.check_workers(workers, address)
    for scheduler in schedulers:
        check_scheduler(scheduler)


def table(cells: Sequence[Cell], mean: bool = True) -> tuple[list[str], list[str], list[list[float]]]:
    """Arrange the mean scores of cells as a table: scenarios by columns (and schedulers, if there are several).

    mean: add the benchmark's mean as the last row; not useful if several rows belong to one scenario.
    Returns row names, column names, and the means as a list per row.
    """
    several = len({cell.scheduler for cell in cells}) > 1
    name = lambda cell: f"{cell.column}, {cell.scheduler}" if several else cell.column
    rows, columns = list(dict.fromkeys(c.scenario for c in cells)), list(dict.fromkeys(map(name, cells)))
    means = {(cell.scenario, name(cell)): cell.mean for cell in cells}
    values = [[means[row, column] for column in columns] for row in rows]
    if mean and len(rows) > 1:
        values.append([benchmark_score(row[index] for row in values) for index in range(len(columns))])
        rows = [*rows, "mean"]
    return rows, columns, values
