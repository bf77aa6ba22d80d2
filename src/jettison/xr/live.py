"""Live: frames arrive by the clock, models run, deadlines pass. The score of this machine."""

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
    """One of each task's model: native ones of a size, or the files that the scenario or ``files`` name.

    recipes: by model, or under ``*`` for all. Raises UsageError for models that the scenario has not.
    """
    recipes, files = dict(recipes or {}), dict(files or {})
    check_size(size)
    for name in (*recipes, *files):
        if name != "*":
            scenario.task(name)
    for recipe in recipes.values():
        check_recipe(recipe)
    found = {}
    for task in scenario.tasks:
        source = files.get(task.name) or task.model.file or "native"
        recipe = recipes.get(task.name, recipes.get("*", "original"))
        found[task.name] = Variant(task.name, source, size, recipe)
    return found


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
    """Run ``scenario`` on running ``units``, with the rules of ``simulate`` and the same frames for the same seed.

    costs: of ``units.measure``: what the scheduler expects, and the energy. The end of a frame is when its unit says it
    ended; its start is its dispatch, so that what the dispatcher takes counts.
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
        events = [(frame.arrival, 0, place, frame) for place, frame in enumerate(frames)]
        events += [(frame.deadline, 1, place, frame) for place, frame in enumerate(last_frames(frames))]
        events.sort(key=lambda event: event[:3])
        self.zero, place, second = time.perf_counter() + LEAD, 0, 0
        with bar("live", max(1, round(horizon_ms / 1e3))) as progress:
            while place < len(events) or any(self.running):
                pause = events[place][0] - self.now() if place < len(events) else 1e3
                for unit, end in self.units.wait(pause / 1e3):
                    self.running[unit].end = 1e3 * (end - self.zero)
                    self.finish(unit)
                now = self.now()
                while place < len(events) and events[place][0] <= now:
                    _, last, _, frame = events[place]
                    self.expire(frame) if last else self.arrive(frame)
                    place += 1
                self.dispatch(self.now())
                if now > 1e3 * (second + 1):
                    second += 1
                    progress.advance()

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        frame.energy = self.rows[unit][frame.task][1]
        self.units.start(unit, frame.task)
