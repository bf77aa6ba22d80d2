"""Frames: what arrives, when it is due, and what became of it. Simulated and live runs speak of the same frames."""

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
    """One inference that is asked of a task. Times in ms from the start of the run, energy in mJ.

    deadline: when the next frame of the task arrives. asked: what its coin says. luck: 0 to 1, which
    of the measured latencies it gets. parents: the frames whose outputs it
    needs. status: ``waiting``, ``running``, ``done``; ``dropped``: not begun by its deadline, or its parent was
    dropped; ``skipped``: not asked for; ``unlogged``: begun or queued when the official program stopped. pieces: (unit,
    start, end) of what ran before a preemption. left: the share of the work still to do.
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
        """ms after the deadline; negative if in time."""
        return self.end - self.deadline

    @property
    def spans(self) -> list[tuple[int, float, float]]:
        """(unit, start, end) of everything that ran of it."""
        return self.pieces + ([(self.unit, self.start, self.end)] if self.end is not None else [])


@dataclass(frozen=True)
class Timeline:
    """A run: what was asked, of what, and the frames in the order of their arrival."""

    scenario: Scenario
    units: tuple[str, ...]
    horizon_ms: float
    frames: tuple[Frame, ...]
    scheduler: str
    seed: int | None = None
    compat: str | None = None
    live: bool = False

    def of(self, task: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.task == task]

    @property
    def busy_ms(self) -> tuple[float, ...]:
        """Of each unit."""
        busy = [0.0] * len(self.units)
        for frame in self.frames:
            for unit, start, end in frame.spans:
                busy[unit] += end - start
        return tuple(busy)

    @property
    def drop_rate(self) -> float:
        """Dropped of all that were asked for and came to an end."""
        statuses = [frame.status for frame in self.frames if frame.status in ("done", "dropped")]
        return statuses.count("dropped") / max(1, len(statuses))


def check_run(horizon_ms: float, seed: int) -> None:
    """Raises UsageError for a horizon or a seed that is none."""
    if type(horizon_ms) not in (int, float) or not 0 < horizon_ms <= LONGEST_MS:
        raise UsageError(f"horizon = {shown(horizon_ms)} ms: more than 0 and at most {LONGEST_MS:.0f} is needed")
    check_seed(seed)


def make_frames(scenario: Scenario, horizon_ms: float, seed: int, jitter: bool = True) -> tuple[Frame, ...]:
    """Every frame that is due to arrive before ``horizon_ms``, by arrival.

    Frame n of a task comes at n / fps, give or take the jitter of its sensor (uniform); its deadline is when frame
    n + 1 comes. It hangs on the frame of each task in ``after`` that was due last before it. Every task has random
    numbers of its own, so that a change of one leaves the others' coins as they are. Raises UsageError for a horizon or
    a seed that is none.
    """
    check_run(horizon_ms, seed)
    made: dict[str, list[Frame]] = {}
    for order, task in enumerate(scenario.tasks):
        count = ceil(horizon_ms / task.period_ms - 1e-9)
        times = np.arange(count + 1) * task.period_ms
        random = np.random.default_rng((seed, order))
        shifts = random.uniform(-task.model.jitter_ms, task.model.jitter_ms, count + 1)
        due = (np.maximum(times + shifts, 0.0) if jitter else times).tolist()
        asked = (random.random(count) < task.probability).tolist()
        luck = random.random(count).tolist()
        made[task.name] = [Frame(task.name, n, due[n], due[n + 1], order, asked[n], luck[n]) for n in range(count)]
    for task in scenario.tasks:
        for name in task.after:
            rate, above = scenario.task(name).fps / task.fps, made[name]
            for frame in made[task.name]:
                parent = above[min(int(frame.number * rate + 1e-9), len(above) - 1)]
                frame.parents += (parent,)
                parent.children.append(frame)
    return tuple(sorted(_all(made), key=lambda frame: (frame.arrival, frame.order)))


def _all(made: dict[str, list[Frame]]) -> Iterator[Frame]:
    for frames in made.values():
        yield from frames


def settle(frame: Frame, through: str) -> str:
    """What a frame that has arrived is to do, by its coin and its parents: ``ready``, ``blocked``, ``skipped`` or
    ``dropped``.

    Without the output it needs (``through`` data) a frame is lost as its parent was. What nobody asked for, because
    the parent that would have said so (``through`` control) has said nothing, is skipped. Our reconstruction: the paper
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
