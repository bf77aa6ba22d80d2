"""Runs a scenario on units whose costs are known: discrete events, exact times, any horizon.

The official runtime has accidents (see ``official``); this is what it sets out to be. Frames arrive when their sensor
delivers them, jitter included. Each task has room for one waiting frame: when the next one arrives, a frame that has
not begun is dropped. What has begun ends, late if it must. Whatever arrives within the horizon is brought to its end.
"""

from collections.abc import Callable
from heapq import heappop, heappush

from jettison.errors import UsageError, unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.frames import Frame, Timeline, make_frames, settle
from jettison.xr.official import simulate_official

# What a scheduler looks at: of all ready frames and all idle units, the pair with the smallest value goes first; of
# equals the faster unit, the nearer deadline, the task that stands first. (frame, latency, energy) -> value
SCHEDULERS: dict[str, Callable[[Frame, float, float], float]] = {
    "fifo": lambda frame, latency, energy: frame.arrival,
    "edf": lambda frame, latency, energy: frame.deadline,
    "latency-greedy": lambda frame, latency, energy: latency,
    "edp-greedy": lambda frame, latency, energy: latency * energy,
}
COMPAT = ("v0.1",)
ARRIVE, FINISH, BOUNDARY = 2, 0, 1  # at one moment, completions come first


def simulate(
    scenario: Scenario,
    costs: Costs,
    *,
    horizon_ms: float = 1000.0,
    scheduler: str = "latency-greedy",
    seed: int | None = 0,
    jitter: bool = True,
    preempt: bool = False,
    compat: str | None = None,
) -> Timeline:
    """Run ``scenario``.

    scheduler: ``fifo``, ``edf``, ``latency-greedy`` or ``edp-greedy``. preempt: a running frame yields at the end of a
    layer to one that the scheduler would rather have. compat ``v0.1``: the official runtime instead, which knows 700
    ms, its own two schedulers, and neither jitter nor preemption. The same arguments give the same run.

    Raises UsageError for names and numbers that are not valid, and for models without a cost.
    """
    costs.check(task.name for task in scenario.tasks)
    if compat is not None:
        if compat not in COMPAT:
            raise unknown("compat", compat, COMPAT)
        if preempt:
            raise UsageError("preempt = True: the official runtime (compat v0.1) does not preempt")
        return simulate_official(scenario, costs, scheduler, seed)
    if scheduler not in SCHEDULERS:
        raise unknown("scheduler", scheduler, SCHEDULERS)
    frames = make_frames(scenario, horizon_ms, seed or 0, jitter)
    _Run(scenario, costs, frames, SCHEDULERS[scheduler], preempt).go()
    return Timeline(scenario, costs.units, horizon_ms, frames, scheduler, seed or 0)


class _Run:
    """``waiting``: by task, the frame that has arrived and not begun. ``ready``: those of them that may begin, and what
    was preempted. ``running``: by unit."""

    def __init__(self, scenario: Scenario, costs: Costs, frames: tuple[Frame, ...], value, preempt: bool):
        self.rows = [{name: (c.latency_ms, c.energy_mj, c.layers) for name, c in row.items()} for row in costs.rows]
        self.through = {task.name: task.through for task in scenario.tasks}
        self.frames, self.value, self.preempt = frames, value, preempt
        self.waiting: dict[str, Frame | None] = dict.fromkeys(self.through)
        self.ready: list[Frame] = []
        self.running: list[Frame | None] = [None] * len(self.rows)
        self.idle = list(range(len(self.rows)))
        self.events: list[tuple[float, int, int, Frame]] = []  # time, kind, unit or order, frame
        last = {frame.task: frame for frame in frames}
        for frame in last.values():  # nothing takes the place of the last one, but its time comes all the same
            heappush(self.events, (frame.deadline, ARRIVE, frame.order, frame))

    def go(self) -> None:
        arriving = iter(self.frames)
        coming = next(arriving, None)
        while coming or self.events:
            now = min(coming.arrival if coming else float("inf"), self.events[0][0] if self.events else float("inf"))
            while self.events and self.events[0][0] <= now:
                _, kind, unit, frame = heappop(self.events)
                if kind == FINISH:
                    if self.running[unit] is frame and frame.end <= now:  # not if it was preempted meanwhile
                        self.finish(unit, frame)
                elif kind == BOUNDARY:
                    self.yield_unit(unit, frame, now)
                elif self.waiting[frame.task] is frame:
                    self.resolve(frame, "dropped")
            while coming and coming.arrival <= now:
                self.arrive(coming)
                coming = next(arriving, None)
            if self.ready:
                if self.idle:
                    self.dispatch(now)
                if self.preempt and self.ready:
                    self.ask_to_yield(now)

    def arrive(self, frame: Frame) -> None:
        before = self.waiting[frame.task]
        if before is not None:
            self.resolve(before, "dropped")
        self.waiting[frame.task] = frame
        self.consider(frame)

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

    def finish(self, unit: int, frame: Frame) -> None:
        self.running[unit] = None
        self.idle.append(unit)
        frame.left = 0.0
        self.resolve(frame, "done")

    def worth(self, frame: Frame, unit: int) -> tuple[float, float, float, int] | None:
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
            self.begin(best[2], best[1], now)

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        self.ready.remove(frame)
        self.idle.remove(unit)
        if self.waiting[frame.task] is frame:
            self.waiting[frame.task] = None
        latency, energy, _ = self.rows[unit][frame.task]
        frame.status, frame.unit, frame.start = "running", unit, now
        frame.end = now + latency * frame.left
        frame.energy += energy * frame.left
        self.running[unit] = frame
        heappush(self.events, (frame.end, FINISH, unit, frame))

    def ask_to_yield(self, now: float) -> None:
        """Where a ready frame is worth more than a running one, look again at the end of the running one's layer."""
        for unit, frame in enumerate(self.running):
            if frame is not None and self.outranked(unit, frame, now):
                boundary = self.boundary(unit, frame, now)
                if boundary is not None:
                    heappush(self.events, (boundary[0], BOUNDARY, unit, frame))

    def outranked(self, unit: int, frame: Frame, now: float) -> bool:
        latency, energy, _ = self.rows[unit][frame.task]
        left = (frame.end - now) / latency if latency else 0.0
        own = self.value(frame, latency * left, energy * left)
        return any((worth := self.worth(other, unit)) is not None and worth[0] < own for other in self.ready)

    def boundary(self, unit: int, frame: Frame, now: float) -> tuple[float, float] | None:
        """When the layer that runs now ends, and the share of the work that is left then; None of the last layer."""
        latency, _, layers = self.rows[unit][frame.task]
        for end in layers[:-1]:
            left = 1.0 - end
            if left < frame.left and (at := frame.end - latency * left) >= now:
                return at, left
        return None

    def yield_unit(self, unit: int, frame: Frame, now: float) -> None:
        if self.running[unit] is not frame or not self.outranked(unit, frame, now):
            return
        latency, energy, _ = self.rows[unit][frame.task]
        found = self.boundary(unit, frame, now - 1e-9 * latency)
        if found is None or abs(found[0] - now) > 1e-6 * latency:  # it was preempted and has come back meanwhile
            return
        left = found[1]
        frame.pieces.append((unit, frame.start, now))
        frame.energy -= energy * left
        frame.left, frame.status, frame.end, frame.start = left, "waiting", None, None
        self.running[unit] = None
        self.idle.append(unit)
        self.ready.append(frame)
