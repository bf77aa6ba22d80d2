"""The simulator: run a scenario on units with known costs, by discrete events, with exact times and any horizon.

The official runtime has behaviour that looks unintended (see ``official``). This simulator has the intended rules:

- Frames arrive when their sensor delivers them, jitter included.
- A task has room for one waiting frame. When its next frame arrives, a frame that has not begun is dropped.
- A frame that has begun always ends, if necessary after its deadline.
- Every frame that arrives within the horizon gets a final status, also if it ends after the horizon.
"""

from heapq import heappop, heappush
from itertools import count

from jettison.core.errors import UsageError, unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.dispatch import Dispatcher, last_frames
from jettison.xr.frames import Frame, Timeline, make_frames
from jettison.xr.official import simulate_official

COMPAT = ("v0.1",)
FINISH, BOUNDARY, EXPIRE, DISPATCH = 0, 1, 2, 3  # kinds of events; events of one moment are handled in this order


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
    """Simulate a scenario. The same arguments give the same run.

    scheduler: ``fifo``, ``edf``, ``latency-greedy`` or ``edp-greedy``.
    jitter: shift arrivals by the jitter of the sensors.
    preempt: at the end of a layer, a running frame yields to a ready frame that the scheduler prefers.
    compat: ``v0.1`` runs the official runtime instead, which always simulates 700 ms, has only ``latency-greedy`` and
        ``edp-greedy``, and neither jitter nor preemption.
    Raises UsageError for invalid names and numbers, and for models without a cost.
    """
    costs.check(task.name for task in scenario.tasks)
    check_compat(compat, preempt)
    if compat is not None:
        return simulate_official(scenario, costs, scheduler, seed)
    frames = make_frames(scenario, horizon_ms, seed or 0, jitter)
    _Run(scenario, costs, frames, scheduler, preempt).go()
    return Timeline(scenario, costs.units, horizon_ms, frames, scheduler, seed or 0)


def check_compat(compat: str | None, preempt: bool = False) -> None:
    """Raise UsageError for an unknown ``compat``, and for preemption under a ``compat``."""
    if compat is not None and compat not in COMPAT:
        raise unknown("compat", compat, COMPAT)
    if compat is not None and preempt:
        raise UsageError("preempt = True: the official runtime (compat v0.1) does not preempt")


class _Run(Dispatcher):
    """A simulation. Time advances from event to event: an arrival, a completion, or the end of a layer at which a ready
    frame may preempt. With ``reaction`` above 0 ms, a dispatch takes place that long after the event that caused it."""

    def __init__(self, scenario: Scenario, costs: Costs, frames: tuple[Frame, ...], scheduler: str, preempt: bool):
        super().__init__(scenario, costs, scheduler)
        self.frames, self.preempt, self.reaction = frames, preempt, costs.reaction_ms
        self.due: float | None = None  # time of the next dispatch, if one is planned
        # A heap of (time, kind, unit or order, number, frame). The number is unique: frames cannot be compared.
        self.events: list[tuple[float, int, int, int, Frame | None]] = []
        self.numbers = count()
        # A frame is dropped when the next one of its task arrives. The last one has no successor and expires by time.
        for frame in last_frames(frames):
            self.push(frame.deadline, EXPIRE, frame.order, frame)

    def push(self, time: float, kind: int, unit: int, frame: Frame | None) -> None:
        """Add an event."""
        heappush(self.events, (time, kind, unit, next(self.numbers), frame))

    def go(self) -> None:
        """Run until all frames have arrived and all events are handled."""
        arrivals = iter(self.frames)
        upcoming = next(arrivals, None)
        while upcoming or self.events:
            now = min(
                upcoming.arrival if upcoming else float("inf"), self.events[0][0] if self.events else float("inf")
            )
            while self.events and self.events[0][0] <= now:
                _, kind, unit, _, frame = heappop(self.events)
                if kind == FINISH:
                    if self.running[unit] is frame and frame.end <= now:  # otherwise it was preempted after the push
                        self.finish(unit)
                elif kind == BOUNDARY:
                    self.yield_unit(unit, frame, now)
                elif kind == EXPIRE:
                    self.expire(frame)
            while upcoming and upcoming.arrival <= now:
                self.arrive(upcoming)
                upcoming = next(arrivals, None)
            if self.due is not None and now >= self.due and not (self.ready and self.idle):
                self.due = None  # the planned dispatch is due and has nothing to do
            if self.ready:
                if self.idle:
                    self.dispatch_soon(now)
                if self.preempt and self.ready:
                    self.ask_to_yield(now)

    def dispatch_soon(self, now: float) -> None:
        """Dispatch now, or plan a dispatch after the dispatcher's reaction time."""
        if not self.reaction or (self.due is not None and now >= self.due):
            self.due = None
            self.dispatch(now)
        elif self.due is None:
            self.due = now + self.reaction
            self.push(self.due, DISPATCH, 0, None)

    def latency(self, frame: Frame, unit: int) -> float:
        """Return the latency of the whole frame on a unit in ms; if latencies were measured, one of them."""
        latency, _, _, samples = self.rows[unit][frame.task]
        return samples[int(frame.luck * len(samples))] if samples else latency

    def begin(self, frame: Frame, unit: int, now: float) -> None:
        frame.end = now + self.latency(frame, unit) * frame.left
        frame.energy += self.rows[unit][frame.task][1] * frame.left
        self.push(frame.end, FINISH, unit, frame)

    def ask_to_yield(self, now: float) -> None:
        """For every running frame that a ready frame outranks, add an event at the end of the layer that runs now."""
        for unit, frame in enumerate(self.running):
            if frame is not None and self.outranked(unit, frame, now):
                boundary = self.boundary(unit, frame, now)
                if boundary is not None:
                    self.push(boundary[0], BOUNDARY, unit, frame)

    def outranked(self, unit: int, frame: Frame, now: float) -> bool:
        """Whether the scheduler prefers a ready frame to what is left of the running ``frame`` on its unit."""
        latency, energy = self.latency(frame, unit), self.rows[unit][frame.task][1]
        left = (frame.end - now) / latency if latency else 0.0
        own = self.value(frame, latency * left, energy * left)
        return any((worth := self.worth(other, unit)) is not None and worth[0] < own for other in self.ready)

    def boundary(self, unit: int, frame: Frame, now: float) -> tuple[float, float] | None:
        """Return when the layer that runs now ends, and the share of the work left then; None in the last layer."""
        latency, layers = self.latency(frame, unit), self.rows[unit][frame.task][2]
        for end in layers[:-1]:
            left = 1.0 - end
            if left < frame.left and (at := frame.end - latency * left) >= now:
                return at, left
        return None

    def yield_unit(self, unit: int, frame: Frame, now: float) -> None:
        """Preempt ``frame`` at the end of a layer, if a ready frame still outranks it."""
        if self.running[unit] is not frame or not self.outranked(unit, frame, now):
            return
        latency, energy = self.latency(frame, unit), self.rows[unit][frame.task][1]
        boundary = self.boundary(unit, frame, now - 1e-9 * latency)  # 1e-9 and 1e-6 absorb rounding
        # No layer ends now if the frame was preempted and resumed after the event was added.
        if boundary is None or abs(boundary[0] - now) > 1e-6 * latency:
            return
        left = boundary[1]
        frame.pieces.append((unit, frame.start, now))
        frame.energy -= energy * left  # ``begin`` charged the whole rest
        frame.left, frame.status, frame.end, frame.start = left, "waiting", None, None
        self.running[unit] = None
        self.idle.append(unit)
        self.ready.append(frame)
