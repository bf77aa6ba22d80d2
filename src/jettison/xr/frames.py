"""Frames: arrivals, deadlines, dependencies and results. Simulated and live runs use the same frames."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_seed
from jettison.xr.definitions import Scenario

LONGEST_MS = 3_600_000.0


@dataclass(slots=True, eq=False)
class Frame:
    """One inference of a task. Times are in ms from the start of the run, energy in mJ.

    number: index of the frame within its task.
    deadline: when the next frame of the task arrives.
    order: index of the task in the scenario.
    asked: whether the frame is requested; drawn with the task's probability.
    luck: random number from 0 to 1 that selects one of the measured latencies.
    status: one of
        ``waiting``, ``running``, ``done``;
        ``dropped``: not begun by its deadline, or the parent whose output it needs was dropped;
        ``skipped``: not requested;
        ``unlogged``: running or queued when the official program stopped.
    left: the share of the work that is still to do, 0 to 1.
    parents: the frames it waits for. children: the frames that wait for it.
    pieces: (unit, start, end) of what ran before each preemption.
    """

    task: str
    number: int
    arrival: float
    deadline: float
    order: int = 0
    asked: bool = True
    luck: float = 0.0
    status: str = "waiting"
    start: float | None = None
    end: float | None = None
    unit: int | None = None
    energy: float = 0.0
    left: float = 1.0
    parents: tuple["Frame", ...] = ()
    children: list["Frame"] = field(default_factory=list)
    pieces: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def lateness(self) -> float:
        """Milliseconds from the deadline to the end; negative if the frame ended in time."""
        return self.end - self.deadline

    @property
    def spans(self) -> list[tuple[int, float, float]]:
        """Every uninterrupted piece of the frame that ran, as (unit, start, end)."""
        return self.pieces + ([(self.unit, self.start, self.end)] if self.end is not None else [])


@dataclass(frozen=True)
class Timeline:
    """A run: scenario, names of the units, options, and the frames in the order of their arrival."""

    scenario: Scenario
    units: tuple[str, ...]
    horizon_ms: float
    frames: tuple[Frame, ...]
    scheduler: str
    seed: int | None = None
    compat: str | None = None
    live: bool = False

    def of(self, task: str) -> list[Frame]:
        """Return the frames of one task."""
        return [frame for frame in self.frames if frame.task == task]

    @property
    def busy_ms(self) -> tuple[float, ...]:
        """Milliseconds that every unit was busy."""
        busy = [0.0] * len(self.units)
        for frame in self.frames:
            for unit, start, end in frame.spans:
                busy[unit] += end - start
        return tuple(busy)

    @property
    def drop_rate(self) -> float:
        """The share of dropped frames among all frames that were done or dropped."""
        statuses = [frame.status for frame in self.frames if frame.status in ("done", "dropped")]
        return statuses.count("dropped") / max(1, len(statuses))


def check_run(horizon_ms: float, seed: int) -> None:
    """Raise UsageError for an invalid horizon or seed."""
    if type(horizon_ms) not in (int, float) or not 0 < horizon_ms <= LONGEST_MS:
        raise UsageError(f"horizon = {shown(horizon_ms)} ms: more than 0 and at most {LONGEST_MS:.0f} is needed")
    check_seed(seed)


def make_frames(scenario: Scenario, horizon_ms: float, seed: int, jitter: bool = True) -> tuple[Frame, ...]:
    """Make every frame whose nominal arrival lies before ``horizon_ms``, sorted by arrival.

    Frame n of a task arrives at n / fps, shifted by the jitter of its sensor (uniform); its deadline is the arrival of
    frame n + 1. Its parents are, for every task in ``after``, the last frame of that task that was due at or before
    frame n, without jitter. Every task draws from a random generator of its own, so that a change of one task does not
    change which frames of the others are requested. Raises UsageError for an invalid horizon or seed.
    """
    check_run(horizon_ms, seed)
    frames_of: dict[str, list[Frame]] = {}
    for order, task in enumerate(scenario.tasks):
        count = ceil(horizon_ms / task.period_ms - 1e-9)  # 1e-9 absorbs rounding: no frame at the horizon itself
        times = np.arange(count + 1) * task.period_ms  # one more, as the deadline of the last frame
        rng = np.random.default_rng((seed, order))
        shifts = rng.uniform(-task.model.jitter_ms, task.model.jitter_ms, count + 1)
        arrivals = (np.maximum(times + shifts, 0.0) if jitter else times).tolist()
        asked = (rng.random(count) < task.probability).tolist()
        luck = rng.random(count).tolist()
        frames_of[task.name] = [
            Frame(task.name, n, arrivals[n], arrivals[n + 1], order, asked[n], luck[n]) for n in range(count)
        ]
    for task in scenario.tasks:
        for name in task.after:
            rate, candidates = scenario.task(name).fps / task.fps, frames_of[name]
            for frame in frames_of[task.name]:
                parent = candidates[min(int(frame.number * rate + 1e-9), len(candidates) - 1)]
                frame.parents += (parent,)
                parent.children.append(frame)
    return tuple(sorted(_all(frames_of), key=lambda frame: (frame.arrival, frame.order)))


def _all(frames_of: dict[str, list[Frame]]) -> Iterator[Frame]:
    for frames in frames_of.values():
        yield from frames


def settle(frame: Frame, through: str) -> str:
    """Return what happens to a frame that has arrived: ``ready``, ``blocked``, ``skipped`` or ``dropped``.

    A frame that is not requested, or whose parent was skipped, is skipped. If a parent was dropped, the frame is
    dropped too where it needs the parent's output (``through`` data), and skipped where that output would have
    requested it (``through`` control). A frame is blocked while a parent is not done. Our reconstruction: the paper
    names the two kinds of dependency and does not say what follows a drop.
    """
    if not frame.asked:
        return "skipped"
    blocked = False
    for parent in frame.parents:
        if parent.status == "skipped":
            return "skipped"
        if parent.status == "dropped":
            return "dropped" if through == "data" else "skipped"
        blocked |= parent.status != "done"
    return "blocked" if blocked else "ready"
