"""Who runs next, and where: what simulated and live runs share."""

from collections.abc import Callable, Iterable

from jettison.core.errors import unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.frames import Frame, settle

# What a scheduler looks at: of all ready frames and all idle units, the pair with the smallest value goes first; of
# equals the faster unit, the nearer deadline, the task that stands first. (frame, latency, energy) -> value
SCHEDULERS: dict[str, Callable[[Frame, float, float], float]] = {
    "fifo": lambda frame, latency, energy: frame.arrival,
    "edf": lambda frame, latency, energy: frame.deadline,
    "latency-greedy": lambda frame, latency, energy: latency,
    "edp-greedy": lambda frame, latency, energy: latency * energy,
}


def check_scheduler(name: str) -> None:
    """Raises UsageError that lists what there is."""
    if name not in SCHEDULERS:
        raise unknown("scheduler", name, SCHEDULERS)


def last_frames(frames: Iterable[Frame]) -> list[Frame]:
    """Of every task."""
    return list({frame.task: frame for frame in frames}.values())


class Dispatcher:
    """``waiting``: by task, the frame that has arrived and not begun. ``ready``: those of them that may begin, and what
    was preempted. ``running``: by unit. Whoever inherits says what ``begin`` does, and lets time pass.

    Raises UsageError for an unknown scheduler and for models without a cost.
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
        raise NotImplementedError

    def arrive(self, frame: Frame) -> None:
        before = self.waiting[frame.task]
        if before is not None:
            self.resolve(before, "dropped")
        self.waiting[frame.task] = frame
        self.consider(frame)

    def expire(self, frame: Frame) -> None:
        """Its deadline has come; a frame that has begun does not mind."""
        if self.waiting[frame.task] is frame:
            self.resolve(frame, "dropped")

    def consider(self, frame: Frame) -> None:
        said = settle(frame, self.through[frame.task])
        if said == "ready":
            self.ready.append(frame)
        elif said != "blocked":
            self.resolve(frame, said)

    def resolve(self, frame: Frame, status: str) -> None:
        if self.waiting[frame.task] is frame:
            self.waiting[frame.task] = None
            if frame in self.ready:
                self.ready.remove(frame)
        frame.status = status
        for child in frame.children:
            if self.waiting[child.task] is child and child not in self.ready:
                self.consider(child)

    def finish(self, unit: int) -> None:
        frame, self.running[unit] = self.running[unit], None
        self.idle.append(unit)
        frame.left = 0.0
        self.resolve(frame, "done")

    def worth(self, frame: Frame, unit: int) -> tuple[float, float, float, int] | None:
        """What orders ready frames on idle units; None if the frame cannot run there."""
        cost = self.rows[unit].get(frame.task)
        if cost is None:
            return None
        latency = cost[0] * frame.left
        return self.value(frame, latency, cost[1] * frame.left), latency, frame.deadline, frame.order

    def dispatch(self, now: float) -> None:
        while self.ready and self.idle:
            best = None
            for frame in self.ready:
                for unit in self.idle:
                    worth = self.worth(frame, unit)
                    if worth and (best is None or (worth, unit) < best[:2]):
                        best = (worth, unit, frame)
            if best is None:  # what is ready cannot run on what is idle
                return
            _, unit, frame = best
            self.ready.remove(frame)
            self.idle.remove(unit)
            if self.waiting[frame.task] is frame:
                self.waiting[frame.task] = None
            frame.status, frame.unit, frame.start = "running", unit, now
            self.running[unit] = frame
            self.begin(frame, unit, now)
