"""The dispatcher decides which frame runs next, and on which unit. Simulated and live runs share it."""

from collections.abc import Callable, Iterable

from jettison.core.errors import unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.frames import Frame, settle

# A scheduler maps (frame, latency, energy) to a value. Of all pairs of a ready frame and an idle unit, the pair with
# the smallest value is dispatched first. Ties go to the lower latency, then to the earlier deadline, then to the task
# that comes first in the scenario.
SCHEDULERS: dict[str, Callable[[Frame, float, float], float]] = {
    "fifo": lambda frame, latency, energy: frame.arrival,
    "edf": lambda frame, latency, energy: frame.deadline,
    "latency-greedy": lambda frame, latency, energy: latency,
    "edp-greedy": lambda frame, latency, energy: latency * energy,
}


def check_scheduler(name: str) -> None:
    """Raise UsageError that lists the schedulers if ``name`` is none of them."""
    if name not in SCHEDULERS:
        raise unknown("scheduler", name, SCHEDULERS)


def last_frames(frames: Iterable[Frame]) -> list[Frame]:
    """Return the last frame of every task. frames: in the order of their arrival."""
    return list({frame.task: frame for frame in frames}.values())


class Dispatcher:
    """The state of a run, and the rules by which frames arrive, start and end.

    waiting: by task, the frame that has arrived and has not begun, or None.
    ready: those waiting frames that may begin, and preempted frames.
    running: by unit, the frame that runs there, or None.
    idle: the units without a running frame.

    A subclass implements ``begin`` and advances the time. Raises UsageError for an unknown scheduler and for models
    without a cost.
    """

    def __init__(self, scenario: Scenario, costs: Costs, scheduler: str):
        check_scheduler(scheduler)
        costs.check(task.name for task in scenario.tasks)
        self.rows = [
            {name: (c.latency_ms, c.energy_mj, c.layers, c.samples) for name, c in row.items()} for row in costs.rows
        ]
        self.through = {task.name: task.through for task in scenario.tasks}
        self.value = SCHEDULERS[scheduler]
        self.waiting: dict[str, Frame | None] = dict.fromkeys(self.through)
        self.ready: list[Frame] = []
        self.running: list[Frame | None] = [None] * len(self.rows)
        self.idle = list(range(len(self.rows)))

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        """Start ``frame`` on ``unit``. Implemented by the subclass."""
        raise NotImplementedError

    def arrive(self, frame: Frame) -> None:
        """Make ``frame`` the waiting frame of its task. A frame that still waits there is dropped."""
        previous = self.waiting[frame.task]
        if previous is not None:
            self.resolve(previous, "dropped")
        self.waiting[frame.task] = frame
        self.consider(frame)

    def expire(self, frame: Frame) -> None:
        """Drop ``frame``, whose deadline has come, unless it has begun."""
        if self.waiting[frame.task] is frame:
            self.resolve(frame, "dropped")

    def consider(self, frame: Frame) -> None:
        """Decide by its parents whether a waiting frame is ready, stays blocked, or is dropped or skipped."""
        status = settle(frame, self.through[frame.task])
        if status == "ready":
            self.ready.append(frame)
        elif status != "blocked":
            self.resolve(frame, status)

    def resolve(self, frame: Frame, status: str) -> None:
        """Give a frame its final status (done, dropped, skipped), and consider its waiting children again."""
        if self.waiting[frame.task] is frame:
            self.waiting[frame.task] = None
            if frame in self.ready:
                self.ready.remove(frame)
        frame.status = status
        for child in frame.children:
            if self.waiting[child.task] is child and child not in self.ready:
                self.consider(child)

    def finish(self, unit: int) -> None:
        """Mark the frame that runs on ``unit`` as done, and the unit as idle."""
        frame, self.running[unit] = self.running[unit], None
        self.idle.append(unit)
        frame.left = 0.0
        self.resolve(frame, "done")

    def worth(self, frame: Frame, unit: int) -> tuple[float, float, float, int] | None:
        """Return the sort key of a frame on a unit, the smallest first; None if the frame cannot run there.

        The key is (scheduler's value, remaining latency in ms, deadline, order of the task).
        """
        cost = self.rows[unit].get(frame.task)
        if cost is None:
            return None
        latency = cost[0] * frame.left
        return self.value(frame, latency, cost[1] * frame.left), latency, frame.deadline, frame.order

    def dispatch(self, now: float) -> None:
        """Start ready frames on idle units, the best pair first, until no pair is left."""
        while self.ready and self.idle:
            best = None
            for frame in self.ready:
                for unit in self.idle:
                    worth = self.worth(frame, unit)
                    if worth and (best is None or (worth, unit) < best[:2]):
                        best = (worth, unit, frame)
            if best is None:  # no ready frame can run on any idle unit
                return
            _, unit, frame = best
            self.ready.remove(frame)
            self.idle.remove(unit)
            if self.waiting[frame.task] is frame:
                self.waiting[frame.task] = None
            frame.status, frame.unit, frame.start = "running", unit, now
            self.running[unit] = frame
            self.begin(frame, unit, now)
