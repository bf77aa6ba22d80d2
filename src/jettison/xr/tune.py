"""The loop closed: for a scenario and a device, which recipe of which model raises the score most.

Latency is measured on this machine (or follows from the roofline of another), energy is that of ``operators``,
accuracy is what ``quality`` says was measured on data, else the agreement with the unmodified model
(``variants.agreement``). The score is simulated. A design of ours: XRBench compares systems and changes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.devices.device import find_device
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.dispatch import check_scheduler
from jettison.xr.frames import Timeline, check_run
from jettison.xr.live import run_live, scenario_variants
from jettison.xr.operators import count_operators, roofline_costs
from jettison.xr.results import result, write_page
from jettison.xr.scores import ScenarioScore, check_penalty, score
from jettison.xr.simulator import simulate
from jettison.xr.units import Units, check_units
from jettison.xr.variants import NATIVE_SOURCE, ORIGINAL, Variant, agreement, check_recipe, check_size, open_variant

RECIPES = (
    "folded", "folded+bfloat16", "folded+half", "folded+half+bfloat16", "folded+w8", "folded+w4",
)  # fmt: skip
Choice = dict[str, str]  # model -> recipe
ENOUGH = 0.01  # points; less is no reason to change a model


@dataclass(frozen=True)
class Option:
    """A recipe of a model. latency_ms: on each unit. accuracy: 0 to 1, and what it is (``agreement``, ``quality``)."""

    model: str
    recipe: str
    latency_ms: tuple[float, ...]
    energy_mj: float
    accuracy: float
    kind: str


@dataclass(frozen=True)
class Tuned:
    """singles: each recipe alone, the score it would give, the best first. steps: (model, recipe, score) in the order
    in which they raised it. left_out: recipes that do not go with a model, or cost too much accuracy, and why."""

    before: float
    after: float
    choice: Choice
    steps: tuple[tuple[str, str, float], ...]
    singles: tuple[tuple[str, str, float], ...]
    options: tuple[Option, ...]
    left_out: Mapping[str, str]
    costs_before: Costs = field(repr=False, default=None)
    costs_after: Costs = field(repr=False, default=None)
    accuracy_after: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        listed = [vars(option) | {"latency_ms": list(option.latency_ms)} for option in self.options]
        names = ("before", "after", "choice", "steps", "singles", "left_out", "accuracy_after")
        costs = {"costs_before": self.costs_before.to_dict(), "costs_after": self.costs_after.to_dict()}
        return {name: getattr(self, name) for name in names} | {"options": listed} | costs


def tune(
    scenario: Scenario,
    *,
    device: str = "this",
    recipes: Sequence[str] = RECIPES,
    size: str = "small",
    units: int = 1,
    threads: int = 1,
    floor: float = 0.9,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    scheduler: str = "latency-greedy",
    horizon_ms: float = 2000.0,
    seeds: int = 3,
    rounds: int = 9,
    drop_penalty: str = "code",
) -> Tuned:
    """Choose a recipe for every model of ``scenario``.

    device: ``this``, timed as ``units`` processes of ``threads``, or a name of ``jettison devices``, by the roofline.
    floor: the accuracy score a recipe must keep. quality: model -> recipe -> what was measured, in the metric of the
    model; it takes the place of the agreement. Starts from the original models and takes the single change that raises
    the simulated score (mean over ``seeds``) most, until none does. Raises UsageError.
    """
    check_number("floor", floor, 0, 1)
    check_number("seeds", seeds, 1, 10_000, whole=True)
    check_number("rounds", rounds, 1, 10_000, whole=True)
    check_units(units, threads)
    check_size(size)
    check_run(horizon_ms, 0)
    check_scheduler(scheduler)
    check_penalty(drop_penalty)
    for recipe in recipes:
        check_recipe(recipe)
    elsewhere = None if device == "this" else find_device(device)
    found, left_out = _variants(scenario, recipes, size, floor, {} if quality is None else quality)
    variants = {_key(model, recipe): variant for model, recipe, variant, *_ in found}
    if elsewhere is None:
        with Units(variants, units, threads) as running:
            costs = running.measure(rounds)
    else:
        costs = roofline_costs(
            [elsewhere], {key: count_operators(open_variant(each)) for key, each in variants.items()}
        )
    options = tuple(
        Option(model, recipe, tuple(row[_key(model, recipe)].latency_ms for row in costs.rows),
               costs.rows[0][_key(model, recipe)].energy_mj, accuracy, kind)
        for model, recipe, _, accuracy, kind in found
    )  # fmt: skip
    accuracies = {(option.model, option.recipe): option.accuracy for option in options}

    def value(choice: Choice) -> float:
        chosen, accuracy = _costs(costs, choice), {m: accuracies[m, r] for m, r in choice.items()}
        runs = (
            simulate(scenario, chosen, scheduler=scheduler, seed=seed, horizon_ms=horizon_ms) for seed in range(seeds)
        )
        return fmean(score(run, accuracy=accuracy, drop_penalty=drop_penalty).overall for run in runs)

    start = {task.name: ORIGINAL for task in scenario.tasks}
    changes = [(option.model, option.recipe) for option in options if option.recipe != ORIGINAL]
    choice, steps, singles, best = dict(start), [], [], value(start)
    before = best
    with bar("search", len(changes) * len(start)) as progress:
        while True:
            tried = []
            for model, recipe in changes:
                if choice[model] != recipe:
                    tried.append((value(choice | {model: recipe}), model, recipe))
                progress.advance(note=f"{best:.1f}")
            tried.sort(key=lambda each: -each[0])
            singles = singles or [(model, recipe, gain) for gain, model, recipe in tried]
            if not tried or tried[0][0] < best + ENOUGH:
                break
            best, model, recipe = tried[0]
            choice[model] = recipe
            steps.append((model, recipe, best))
    kept = {model: accuracies[model, recipe] for model, recipe in choice.items()}
    return Tuned(before, best, choice, tuple(steps), tuple(singles), options, left_out,
                 _costs(costs, start), _costs(costs, choice), kept)  # fmt: skip


def _key(model: str, recipe: str) -> str:
    return f"{model} {recipe}"


def _costs(costs: Costs, choice: Choice) -> Costs:
    rows = tuple({model: row[_key(model, recipe)] for model, recipe in choice.items()} for row in costs.rows)
    return replace(costs, rows=rows)


def _variants(
    scenario: Scenario, recipes: Sequence[str], size: str, floor: float, quality: Mapping[str, Mapping[str, float]]
) -> tuple[list[tuple[str, str, Variant, float, str]], dict[str, str]]:
    """(model, recipe, variant, accuracy score, its kind), the originals among them; and what is left out, and why."""
    if not isinstance(quality, Mapping) or not all(isinstance(row, Mapping) for row in quality.values()):
        raise UsageError("quality is a mapping model -> recipe -> what was measured")
    for model, row in quality.items():
        model = scenario.task(model).model
        for recipe, measured in row.items():
            check_recipe(recipe)
            model.accuracy_score(measured)
    found, left_out = [], {}
    with bar("agreement", len(scenario.tasks) * (len(recipes) + 1)) as progress:
        for task in scenario.tasks:
            for recipe in (ORIGINAL, *(each for each in recipes if each != ORIGINAL)):
                progress.advance(note=f"{task.name} {recipe}")
                variant = Variant(task.name, task.model.file or NATIVE_SOURCE, size, recipe)
                measured = quality.get(task.name, {}).get(recipe)
                try:
                    if measured is not None:
                        accuracy, kind = task.model.accuracy_score(measured), "quality"
                    else:
                        accuracy, kind = (1.0 if recipe == ORIGINAL else agreement(variant)), "agreement"
                except UsageError as error:
                    if recipe == ORIGINAL:
                        raise
                    left_out[_key(task.name, recipe)] = str(error)
                    continue
                if recipe != ORIGINAL and accuracy < floor:
                    left_out[_key(task.name, recipe)] = f"{kind} {accuracy:.3f} is below {floor}"
                    continue
                found.append((task.name, recipe, variant, accuracy, kind))
    return found, left_out


def check_runs(
    scenario: Scenario,
    tuned: Tuned,
    *,
    live_seconds: float = 0.0,
    size: str = "small",
    units: int = 1,
    threads: int = 1,
    scheduler: str = "latency-greedy",
    horizon_ms: float = 2000.0,
    seed: int = 0,
    drop_penalty: str = "code",
    page: str | Path | None = None,
) -> dict[str, dict[str, Any]]:
    """One run before and one after, simulated, and live as well for ``live_seconds``; and a page with their timelines.

    Returns ``results.result`` of each: before, after, and live before, live after. The live ones count the same
    accuracies.
    """
    choices = {"before": {task.name: ORIGINAL for task in scenario.tasks}, "after": tuned.choice}
    runs: dict[str, tuple[Timeline, ScenarioScore]] = {}
    for name, choice in choices.items():
        accuracy = tuned.accuracy_after if name == "after" else {}
        scored = lambda timeline, accuracy=accuracy: (
            timeline,
            score(timeline, accuracy=accuracy, drop_penalty=drop_penalty),
        )
        costs = tuned.costs_after if name == "after" else tuned.costs_before
        runs[name] = scored(simulate(scenario, costs, scheduler=scheduler, seed=seed, horizon_ms=horizon_ms))
        if live_seconds:
            with Units(scenario_variants(scenario, size, choice), units, threads) as running:
                lived = run_live(
                    scenario, running, costs, horizon_ms=1e3 * live_seconds, scheduler=scheduler, seed=seed
                )
            runs[f"live {name}"] = scored(lived)
    if page is not None:
        rows = [[model, choice, f"{value:.2f}"] for model, choice, value in tuned.steps]
        singles = [[model, choice, f"{value:.2f}"] for model, choice, value in tuned.singles]
        columns, alone = ["model", "recipe", "scenario score"], f"Each change alone (before: {tuned.before:.2f})"
        tables = [
            {"title": "What was changed, in order", "columns": columns, "rows": rows},
            {"title": alone, "columns": columns, "rows": singles},
        ]
        write_page(page, f"{scenario.title}, tuned", runs, tables=tables)
    return {name: result(timeline, found) for name, (timeline, found) in runs.items()}
