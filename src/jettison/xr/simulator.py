"""Runs a scenario on units whose costs are known: discrete events, exact times, any horizon.

The official runtime has accidents (see ``official``); this is what it sets out to be. Frames arrive when their sensor
delivers them, jitter included. Each task has room for one waiting frame: when the next one arrives, a frame that has
not begun is dropped. What has begun ends, late if it must. Whatever arrives within the horizon is brought to its end.
"""

from heapq import heappop, heappush

from jettison.core.errors import UsageError, unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.dispatch import Dispatcher, last_frames
from jettison.xr.frames import Frame, Timeline, make_frames
from jettison.xr.official import simulate_official

COMPAT = ("v0.1",)
FINISH, BOUNDARY, EXPIRE, DISPATCH = 0, 1, 2, 3  # in this order, at one moment


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
    check_compat(compat, preempt)
    if compat is not None:
        return simulate_official(scenario, costs, scheduler, seed)
    frames = make_frames(scenario, horizon_ms, seed or 0, jitter)
    _Run(scenario, costs, frames, scheduler, preempt).go()
    return Timeline(scenario, costs.units, horizon_ms, frames, scheduler, seed or 0)


def check_compat(compat: str | None, preempt: bool = False) -> None:
    """Raises UsageError that lists what there is."""
    if compat is not None and compat not in COMPAT:
        raise unknown("compat", compat, COMPAT)
    if compat is not None and preempt:
        raise UsageError("preempt = True: the official runtime (compat v0.1) does not preempt")


class _Run(Dispatcher):
    """Time jumps from event to event: an arrival, a completion, the end of a layer where something waits."""

    def __init__(self, scenario: Scenario, costs: Costs, frames: tuple[Frame, ...], scheduler: str, preempt: bool):
        super().__init__(scenario, costs, scheduler)
        self.frames, self.preempt, self.reaction = frames, preempt, costs.reaction_ms
        self.due: float | None = None  # when the next dispatch is
        self.events: list[tuple[float, int, int, Frame | None]] = []  # time, kind, unit or order, frame
        for frame in last_frames(frames):  # nothing takes the place of the last one, but its time comes all the same
            heappush(self.events, (frame.deadline, EXPIRE, frame.order, frame))

    def go(self) -> None:
        arriving = iter(self.frames)
        coming = next(arriving, None)
        while coming or self.events:
            now = min(coming.arrival if coming else float("inf"), self.events[0][0] if self.events else float("inf"))
            while self.events and self.events[0][0] <= now:
                _, kind, unit, frame = heappop(self.events)
                if kind == FINISH:
                    if self.running[unit] is frame and frame.end <= now:  # not if it was preempted meanwhile
                        self.finish(unit)
                elif kind == BOUNDARY:
                    self.yield_unit(unit, frame, now)
                elif kind == EXPIRE:
                    self.expire(frame)
            while coming and coming.arrival <= now:
                self.arrive(coming)
                coming = next(arriving, None)
            if self.due is not None and now >= self.due and not (self.ready and self.idle):
                self.due = None
            if self.ready:
                if self.idle:
                    self.dispatch_soon(now)
                if self.preempt and self.ready:
                    self.ask_to_yield(now)

    def dispatch_soon(self, now: float) -> None:
        """At once, or when the dispatcher has reacted."""
        if not self.reaction or (self.due is not None and now >= self.due):
            self.due = None
            self.dispatch(now)
        elif self.due is None:
            self.due = now + self.reaction
            heappush(self.events, (self.due, DISPATCH, 0, None))

    def latency(self, frame: Frame, unit: int) -> float:
        latency, _, _, samples = self.rows[unit][frame.task]
        return samples[int(frame.luck * len(samples))] if samples else latency

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        frame.end = now + self.latency(frame, unit) * frame.left
        frame.energy += self.rows[unit][frame.task][1] * frame.left
        heappush(self.events, (frame.end, FINISH, unit, frame))

    def ask_to_yield(self, now: float) -> None:
        """Where a ready frame is worth more than a running one, look again at the end of the running one's layer."""
        for unit, frame in enumerate(self.running):
            if frame is not None and self.outranked(unit, frame, now):
                boundary = self.boundary(unit, frame, now)
                if boundary is not None:
                    heappush(self.events, (boundary[0], BOUNDARY, unit, frame))

    def outranked(self, unit: int, frame: Frame, now: float) -> bool:
        latency, energy = self.latency(frame, unit), self.rows[unit][frame.task][1]
        left = (frame.end - now) / latency if latency else 0.0
        own = self.value(frame, latency * left, energy * left)
        return any((worth := self.worth(other, unit)) is not None and worth[0] < own for other in self.ready)

    def boundary(self, unit: int, frame: Frame, now: float) -> tuple[float, float] | None:
        """When the layer that runs now ends, and the share of the work that is left then; None of the last layer."""
        latency, layers = self.latency(frame, unit), self.rows[unit][frame.task][2]
        for end in layers[:-1]:
            left = 1.0 - end
            if left < frame.left and (at := frame.end - latency * left) >= now:
                return at, left
        return None

    def yield_unit(self, unit: int, frame: Frame, now: float) -> None:
        if self.running[unit] is not frame or not self.outranked(unit, frame, now):
            return
        latency, energy = self.latency(frame, unit), self.rows[unit][frame.task][1]
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
