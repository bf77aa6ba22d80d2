"""Live runs: frames arrive by the clock, and the models run on this machine."""

import time
from collections.abc import Mapping

from jettison.core.errors import UsageError
from jettison.core.progress import bar
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.dispatch import Dispatcher, last_frames
from jettison.xr.frames import Frame, Timeline, make_frames
from jettison.xr.units import Units
from jettison.xr.variants import Variant, check_recipe, check_size

LEAD = 0.05  # seconds from starting the clock to the first frame


def scenario_variants(
    scenario: Scenario,
    size: str = "small",
    recipes: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Variant]:
    """Return the variant of every model of a scenario, by model.

    size: of the native models.
    recipes: model -> recipe; ``*`` stands for all models that are not named.
    files: model -> path, instead of the file in the scenario; a model without a file is the native one.
    Raises UsageError for models that the scenario does not have, and for an unknown size or recipe.
    """
    recipes, files = dict(recipes or {}), dict(files or {})
    check_size(size)
    for name in (*recipes, *files):
        if name != "*":
            scenario.task(name)
    for recipe in recipes.values():
        check_recipe(recipe)
    variants = {}
    for task in scenario.tasks:
        source = files.get(task.name) or task.model.file or "native"
        recipe = recipes.get(task.name, recipes.get("*", "original"))
        variants[task.name] = Variant(task.name, source, size, recipe)
    return variants


def run_live(
    scenario: Scenario,
    units: Units,
    costs: Costs,
    *,
    horizon_ms: float = 10_000.0,
    scheduler: str = "latency-greedy",
    seed: int = 0,
    jitter: bool = True,
) -> Timeline:
    """Run a scenario live on ``units``, with the rules of ``simulate`` and the same frames for the same seed.

    costs: result of ``units.measure``; the scheduler uses the latencies, and the frames get the energy.
    A frame starts at its dispatch, so that the time the dispatcher takes counts, and ends when its unit reports it.
    Raises UsageError if the costs are of another number of units.
    """
    if len(costs.units) != units.count:
        raise UsageError(f"costs of {len(costs.units)} units for {units.count} running ones")
    frames = make_frames(scenario, horizon_ms, seed, jitter)
    _Live(scenario, costs, scheduler, units).go(frames, horizon_ms)
    return Timeline(scenario, costs.units, horizon_ms, frames, scheduler, seed, live=True)


class _Live(Dispatcher):
    def __init__(self, scenario: Scenario, costs: Costs, scheduler: str, units: Units):
        super().__init__(scenario, costs, scheduler)
        self.units, self.zero = units, 0.0

    def now(self) -> float:
        return 1e3 * (time.perf_counter() - self.zero)

    def go(self, frames: tuple[Frame, ...], horizon_ms: float) -> None:
        # (time, 0 for an arrival or 1 for a deadline, index, frame). Only the last frame of every task needs its
        # deadline as an event: the other deadlines are the arrivals of the next frames.
        events = [(frame.arrival, 0, index, frame) for index, frame in enumerate(frames)]
        events += [(frame.deadline, 1, index, frame) for index, frame in enumerate(last_frames(frames))]
        events.sort(key=lambda event: event[:3])
        self.zero, position, second = time.perf_counter() + LEAD, 0, 0
        with bar("live", max(1, round(horizon_ms / 1e3))) as progress:
            while position < len(events) or any(self.running):
                pause = events[position][0] - self.now() if position < len(events) else 1e3
                for unit, end in self.units.wait(pause / 1e3):
                    self.running[unit].end = 1e3 * (end - self.zero)
                    self.finish(unit)
                now = self.now()
                while position < len(events) and events[position][0] <= now:
                    _, is_deadline, _, frame = events[position]
                    self.expire(frame) if is_deadline else self.arrive(frame)
                    position += 1
                self.dispatch(self.now())
                if now > 1e3 * (second + 1):
                    second += 1
                    progress.advance()

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        frame.energy = self.rows[unit][frame.task][1]
        self.units.start(unit, frame.task)
