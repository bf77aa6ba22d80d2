"""Sessions of XRBench, as the commands use them: simulate a scenario, sweep over several, or run one live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.offload.capacity import read_times
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario, accelerator_names, find_scenario, scenario_names
from jettison.xr.dispatch import check_scheduler
from jettison.xr.frames import Timeline, check_run
from jettison.xr.live import run_live, scenario_variants
from jettison.xr.offloaded import find_remotes, local_part, offload_costs
from jettison.xr.results import result
from jettison.xr.scores import ScenarioScore, check_penalty, score, summary
from jettison.xr.simulator import check_compat, simulate
from jettison.xr.sources import find_costs
from jettison.xr.sweep import MOST_SEEDS, Cell, check_sweep, sweep, table, vary
from jettison.xr.units import Units

ORIGINAL = ("original",)


@dataclass(frozen=True)
class Session:
    """The runs of one scenario.

    timelines: one per seed; of a live session two, the live run and then the simulated one.
    scores: of the timelines.
    data: the result as JSON data.
    """

    scenario: Scenario
    timelines: tuple[Timeline, ...]
    scores: tuple[ScenarioScore, ...]
    data: dict[str, Any]


def simulate_scenario(
    name: str,
    *,
    seconds: float = 1.0,
    seed: int = 0,
    seeds: int = 1,
    scheduler: str = "latency-greedy",
    compat: str | None = None,
    preempt: bool = False,
    jitter: bool = True,
    drop_penalty: str = "code",
    offload: Mapping[str, str] | None = None,
    **source: Any,
) -> Session:
    """Simulate a scenario on known costs.

    seeds: number of runs, with the seeds ``seed``, ``seed`` + 1, ...
    offload: model -> report of ``jettison offload join``; the model runs on a link with the times of that report.
    source: arguments of ``find_costs``.
    With several seeds the data have a ``summary``: mean and 95 % interval of the overall score. Raises UsageError for
    invalid arguments, before the operators of the models are counted.
    """
    check_number("seeds", seeds, 1, MOST_SEEDS, whole=True)
    check_run(1e3 * seconds, seed)
    check_penalty(drop_penalty)
    check_scheduler(scheduler)
    check_compat(compat, preempt)
    scenario, offload = find_scenario(name), offload or {}
    times = {model: read_times(file) for model, file in offload.items()}
    costs = find_costs(local_part(scenario, offload), **source)
    for model in offload:
        costs = offload_costs(costs, model, times[model])
    options: dict[str, Any] = {"scheduler": scheduler, "compat": compat, "preempt": preempt, "jitter": jitter}
    timelines = tuple(
        simulate(scenario, costs, horizon_ms=1e3 * seconds, seed=number, **options)
        for number in range(seed, seed + seeds)
    )
    scores = tuple(score(timeline, drop_penalty=drop_penalty) for timeline in timelines)
    data = result(timelines[0], scores[0])
    if seeds > 1:
        data["summary"] = vars(summary([scored.overall for scored in scores]))
    return Session(scenario, timelines, scores, data)


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    rows, columns: names. means: overall scores of 0 to 100, a list per row. cells: all figures of every cell.
    """

    rows: list[str]
    columns: list[str]
    means: list[list[float]]
    cells: list[Cell]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict for JSON."""
        cells = [cell.to_dict() for cell in self.cells]
        return {"rows": self.rows, "columns": self.columns, "means": self.means, "cells": cells}


def sweep_scenarios(
    names: Sequence[str] = (),
    *,
    accelerators: Sequence[str] = (),
    devices: Sequence[str] = (),
    recipes: Mapping[str, Mapping[str, str] | None] | None = None,
    workload: str = "native",
    size: str = "full",
    schedulers: Sequence[str] = ("latency-greedy",),
    probabilities: Mapping[str, Sequence[float]] | None = None,
    seeds: int = 20,
    exact: bool = False,
    drop_penalty: str = "code",
    workers: int = 1,
    address: str | None = None,
    seconds: float = 1.0,
    **options: Any,
) -> Sweep:
    """Score scenarios on accelerators, or on devices with recipes.

    names: scenarios; all seven if empty.
    accelerators: all thirteen if empty and ``devices`` is empty. Not together with ``devices``.
    recipes: name of a column -> ``recipes`` of ``find_costs``; None means the original models only.
    probabilities: model -> probabilities that a frame is requested; every combination becomes a row (see ``vary``).
    exact: compute the expectation over all outcomes of the coins instead of runs with ``seeds`` seeds.
    options: of ``simulate``.
    Raises UsageError for invalid arguments, before the operators of the models are counted.
    """
    recipes, probabilities = recipes or dict.fromkeys(ORIGINAL), probabilities or {}
    if accelerators and devices:
        raise UsageError("a sweep is over accelerators or over devices; name only one of them")
    if tuple(recipes) != ORIGINAL and not devices:
        raise UsageError(
            f"recipe = {', '.join(recipes)}: the costs of accelerators are a fixed table without recipes; use --device"
        )
    options |= {"horizon_ms": 1e3 * seconds}
    check_sweep(schedulers, seeds, exact, drop_penalty, workers, address, options)
    scenarios = vary([find_scenario(name) for name in dict.fromkeys(names or scenario_names())], probabilities)
    costs = lambda **source: {
        scenario.name: find_costs(scenario, workload=workload, size=size, **source) for scenario in scenarios
    }
    columns: dict[str, dict[str, Costs]] = {}
    for device in devices:
        for name, recipe in recipes.items():
            column = f"{device}, {name}" if len(recipes) > 1 else device
            columns[column] = costs(devices=[device], **({} if recipe is None else {"recipes": recipe}))
    for accelerator in () if devices else accelerators or accelerator_names():
        columns[accelerator] = costs(accelerator=accelerator)
    cells = sweep(
        scenarios, columns, schedulers=schedulers, seeds=seeds, exact=exact, drop_penalty=drop_penalty,
        workers=workers, address=address, **options,
    )  # fmt: skip
    # With several probabilities, a scenario has several rows, and a mean over rows is not the benchmark's score.
    return Sweep(*table(cells, mean=all(len(varied) == 1 for varied in probabilities.values())), cells)


def live_scenario(
    name: str,
    *,
    size: str = "small",
    recipes: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    units: int = 1,
    threads: int = 1,
    scheduler: str = "latency-greedy",
    seconds: float = 10.0,
    rounds: int = 15,
    jitter: bool = True,
    drop_penalty: str = "code",
    seed: int = 0,
    offload: Mapping[str, str] | None = None,
    token: bytes = b"",
) -> Session:
    """Measure the models on this machine, run the scenario live, then simulate the same run with the measured costs.

    recipes: model -> recipe; ``*`` stands for all others.
    files: model -> an ONNX file or a checkpoint, instead of the native model.
    units: number of processes that run models; threads: per unit.
    rounds: how often every model is timed; the median counts.
    offload: model -> address of the worker that it is offloaded to; token: of the workers.
    Returns a session whose data are those of the live run, with ``costs`` and ``simulated`` added, and ``offloaded``
    where a model is: how many of its frames were computed remote and local, those of measuring included. Raises
    UsageError for invalid arguments, before models are loaded.
    """
    scenario = find_scenario(name)
    variants = scenario_variants(scenario, size, recipes, files or {})
    remotes = find_remotes(scenario, offload or {}, token, variants, seed)
    variants = {name: variant for name, variant in variants.items() if name not in remotes}
    options: dict[str, Any] = {"scheduler": scheduler, "horizon_ms": 1e3 * seconds, "seed": seed, "jitter": jitter}
    check_scheduler(scheduler)
    check_run(1e3 * seconds, seed)
    check_penalty(drop_penalty)
    check_number("rounds", rounds, 1, 10_000, whole=True)
    with Units(variants, units, threads, remotes) as running:
        costs = running.measure(rounds)
        timelines = (run_live(scenario, running, costs, **options), simulate(scenario, costs, **options))
    scores = tuple(score(timeline, drop_penalty=drop_penalty) for timeline in timelines)
    live, simulated = (result(*pair) for pair in zip(timelines, scores, strict=True))
    data = live | {"costs": costs.to_dict(), "simulated": simulated}
    return Session(scenario, timelines, scores, data | ({"offloaded": running.outcomes} if remotes else {}))
