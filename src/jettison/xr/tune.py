"""Tune a scenario for a device: find which recipe of which model raises the score most.

- Latency is measured on this machine, or computed by the roofline of another device.
- Energy is that of ``operators``.
- Accuracy is the quality measured on data where ``quality`` has it, else the agreement with the unmodified model
  (``variants.agreement``).
- The score is simulated.

The design is ours: XRBench compares systems and does not change them.
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
ENOUGH = 0.01  # points of the score; the search stops when the best change gains less


@dataclass(frozen=True)
class Option:
    """A recipe of a model with its cost and accuracy.

    latency_ms: one per unit.
    accuracy: 0 to 1. kind: where the accuracy comes from, ``agreement`` or ``quality``.
    """

    model: str
    recipe: str
    latency_ms: tuple[float, ...]
    energy_mj: float
    accuracy: float
    kind: str


@dataclass(frozen=True)
class Tuned:
    """The result of tuning.

    before, after: the simulated score with the original models and with the chosen recipes.
    choice: model -> chosen recipe.
    steps: the changes in the order in which they were made, as (model, recipe, score after the change).
    singles: every change alone, as (model, recipe, score), the best first.
    options: all recipes that were tried.
    left_out: ``MODEL RECIPE`` -> why it was not tried: it does not work for the model, or loses too much accuracy.
    costs_before, costs_after: of the original models and of the chosen recipes.
    accuracy_after: model -> accuracy of its chosen recipe.
    """

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
        """Return the result as a dict for JSON."""
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
    """Choose a recipe for every model of a scenario.

    The search starts with the original models. It makes the single change that raises the simulated score (mean over
    ``seeds`` seeds) most, and repeats until no change raises it.

    device: ``this``, measured with ``units`` processes of ``threads`` threads; or a name of ``jettison devices``,
        computed by the roofline.
    recipes: recipes to try on every model.
    floor: the lowest accuracy score, 0 to 1, that a recipe may have.
    quality: model -> recipe -> quality measured on data, in the metric of the model; replaces the agreement.
    rounds: how often every recipe is timed; the median counts.
    Raises UsageError for invalid arguments.
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
    other_device = None if device == "this" else find_device(device)
    candidates, left_out = _variants(scenario, recipes, size, floor, {} if quality is None else quality)
    variants = {_key(model, recipe): variant for model, recipe, variant, *_ in candidates}
    if other_device is None:
        with Units(variants, units, threads) as running:
            costs = running.measure(rounds)
    else:
        costs = roofline_costs(
            [other_device], {key: count_operators(open_variant(variant)) for key, variant in variants.items()}
        )
    options = tuple(
        Option(model, recipe, tuple(row[_key(model, recipe)].latency_ms for row in costs.rows),
               costs.rows[0][_key(model, recipe)].energy_mj, accuracy, kind)
        for model, recipe, _, accuracy, kind in candidates
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
            tried.sort(key=lambda attempt: -attempt[0])
            singles = singles or [(model, recipe, total) for total, model, recipe in tried]  # of the first pass only
            if not tried or tried[0][0] < best + ENOUGH:
                break
            best, model, recipe = tried[0]
            choice[model] = recipe
            steps.append((model, recipe, best))
    accuracy_after = {model: accuracies[model, recipe] for model, recipe in choice.items()}
    return Tuned(before, best, choice, tuple(steps), tuple(singles), options, left_out,
                 _costs(costs, start), _costs(costs, choice), accuracy_after)  # fmt: skip


def _key(model: str, recipe: str) -> str:
    return f"{model} {recipe}"


def _costs(costs: Costs, choice: Choice) -> Costs:
    """Keep the costs of the chosen recipes, under the names of the models instead of ``MODEL RECIPE``."""
    rows = tuple({model: row[_key(model, recipe)] for model, recipe in choice.items()} for row in costs.rows)
    return replace(costs, rows=rows)


def _variants(
    scenario: Scenario, recipes: Sequence[str], size: str, floor: float, quality: Mapping[str, Mapping[str, float]]
) -> tuple[list[tuple[str, str, Variant, float, str]], dict[str, str]]:
    """Return the variants to try as (model, recipe, variant, accuracy score, its kind), the originals among them.

    The second result maps ``MODEL RECIPE`` to the reason why it is left out.
    """
    if not isinstance(quality, Mapping) or not all(isinstance(row, Mapping) for row in quality.values()):
        raise UsageError("quality is a mapping model -> recipe -> measured quality, a number")
    for model, row in quality.items():
        model = scenario.task(model).model
        for recipe, measured in row.items():
            check_recipe(recipe)
            model.accuracy_score(measured)
    candidates, left_out = [], {}
    with bar("agreement", len(scenario.tasks) * (len(recipes) + 1)) as progress:
        for task in scenario.tasks:
            for recipe in (ORIGINAL, *(other for other in recipes if other != ORIGINAL)):
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
                candidates.append((task.name, recipe, variant, accuracy, kind))
    return candidates, left_out


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
    """Run the scenario once with the original models and once with the chosen recipes.

    Both runs are simulated, and also run live if ``live_seconds`` is above 0, with the same accuracies.
    page: path of an HTML page with the timelines and the steps of the search; None writes none.
    Returns ``results.result`` of every run, under ``before``, ``after``, ``live before`` and ``live after``.
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
                timeline = run_live(
                    scenario, running, costs, horizon_ms=1e3 * live_seconds, scheduler=scheduler, seed=seed
                )
            runs[f"live {name}"] = scored(timeline)
    if page is not None:
        rows = [[model, choice, f"{value:.2f}"] for model, choice, value in tuned.steps]
        singles = [[model, choice, f"{value:.2f}"] for model, choice, value in tuned.singles]
        columns, alone = ["model", "recipe", "scenario score"], f"Each change alone (before: {tuned.before:.2f})"
        tables = [
            {"title": "What was changed, in order", "columns": columns, "rows": rows},
            {"title": alone, "columns": columns, "rows": singles},
        ]
        write_page(page, f"{scenario.title}, tuned", runs, tables=tables)
    return {name: result(timeline, run_score) for name, (timeline, run_score) in runs.items()}
