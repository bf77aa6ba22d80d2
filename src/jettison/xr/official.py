"""The runtime of the official program, as it is: ``compat="v0.1"``.

Reconstructed from its behaviour (repository XRBench/XRBench-MLSys2023, commit 8915666), with what looks like accidents:

1.  A frame is injected at the first event at or after n intervals, an event being a tick of the fastest task or a
    completion; one frame of a model per event.
2.  Models are served in the byte order of their networks' names.
3.  Intervals are whole: 1000 // fps ms.
4.  The program stops when the last frame has been injected; what runs or waits then is not logged.
5.  A frame may run once its dependency has been completed as often as the frame's number says, whichever frames these
    were.
6.  A unit is free 0.01 ms before a completion; the true completion is logged. Dropped is what has its deadline behind
    it.
7.  A dispatch takes an idle unit, the one with the lowest latency (or energy-delay product), the first of equals; it
    never waits for a busy one. One dispatch of a model per pass, passes until nothing moves.
8.  A frame whose coin fails is neither run nor dropped.
9.  Time is float32, and so are the cycles that latencies are made of.
10. Dropped frames count twice in the score: see ``scores.score``.
11. ``write_schedule`` appends.
12. Without a seed, the seconds of the clock are the seed.
"""

import itertools
import random
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.xr.costs import CYCLES_PER_MS, Cost, Costs
from jettison.xr.definitions import Scenario, Task
from jettison.xr.frames import Frame, Timeline

HORIZON_MS = 700
TOLERANCE_MS = 0.01
MOST_COINS = 16
COLUMNS = (
    "AcceleratorID", "Model Name", "Frame ID", "Injection Time (ms)", "Dispatch Time (ms)", "Deadline Time (ms)",
    "Completion Time (ms)", "Violated Deadline Amount (ms)", "Energy (mJ)",
)  # fmt: skip
PREFERS = {
    "latency-greedy": lambda cost: cost.latency_ms,
    "edp-greedy": lambda cost: cost.latency_ms * cost.energy_mj,
}


def interval(task: Task) -> int:
    """ms between two frames."""
    return int(1000 / task.fps)


def requests(task: Task) -> int:
    return HORIZON_MS // interval(task)


def simulate_official(
    scenario: Scenario,
    costs: Costs,
    scheduler: str = "latency-greedy",
    seed: int | None = None,
    coins: Mapping[str, Sequence[bool]] | None = None,
) -> Timeline:
    """700 ms of a scenario. coins: by task, whether each of its frames is asked for; else they are drawn from ``seed``.

    The stream of random numbers is Python's, not the C library's: seeds are not the official ones, outcomes are.
    """
    if scheduler not in PREFERS:
        raise unknown("scheduler", scheduler, PREFERS, " of compat v0.1")
    if any(task.fps > 1000 for task in scenario.tasks):
        raise UsageError(f"scenario {scenario.name!r}: compat v0.1 knows whole milliseconds, so 1000 fps at most")
    seed = int(time.time()) if seed is None else seed
    tasks = sorted(scenario.tasks, key=lambda task: task.network.encode())
    if coins is None:
        draw = random.Random(seed).random
        coins = {t.name: [draw() < t.probability for _ in range(requests(t))] for t in tasks if t.probability < 1}
    frames = list(_run(tasks, costs, PREFERS[scheduler], coins))
    return Timeline(scenario, costs.units, float(HORIZON_MS), tuple(frames), scheduler, seed, "v0.1")


def _run(tasks: list[Task], costs: Costs, prefers, coins: Mapping[str, Sequence[bool]]) -> list[Frame]:
    queues: dict[str, list[Frame]] = {task.name: [] for task in tasks}
    injected, completed = dict.fromkeys(queues, 0), dict.fromkeys(queues, 0)
    running: list[Frame | None] = [None] * len(costs.units)
    tick = min(map(interval, tasks))
    now, next_tick, frames = 0.0, tick, []
    while True:
        for order, task in enumerate(tasks):
            number, step = injected[task.name], interval(task)
            if number < requests(task) and now >= number * step:
                injected[task.name] += 1
                asked = task.name not in coins or coins[task.name][number]
                frame = Frame(task.name, number, now, float((number + 1) * step), order, asked)
                frame.status = "waiting" if asked else "skipped"
                frames.append(frame)
                if asked:
                    queues[task.name].append(frame)
        for unit, frame in enumerate(running):
            if frame and frame.end <= now + TOLERANCE_MS:
                frame.status, running[unit] = "done", None
                completed[frame.task] += 1
        for queue in queues.values():
            for frame in [frame for frame in queue if frame.deadline < now]:
                frame.status = "dropped"
                queue.remove(frame)
        if all(injected[task.name] >= requests(task) for task in tasks):
            break
        while any([_dispatch(task, queues[task.name], completed, running, costs, prefers, now) for task in tasks]):
            pass
        while next_tick <= now:
            next_tick += tick
        now = min([next_tick, *(frame.end for frame in running if frame and frame.end > now)])
    for frame in frames:
        if frame.status in ("waiting", "running"):
            frame.status, frame.end = "unlogged", None
    return frames


def _dispatch(task: Task, queue, completed, running, costs: Costs, prefers, now: float) -> bool:
    idle = [unit for unit, frame in enumerate(running) if frame is None and task.name in costs.rows[unit]]
    if not queue or not idle or any(completed[name] <= queue[0].number for name in task.after):
        return False
    unit = min(idle, key=lambda unit: prefers(costs.rows[unit][task.name]))
    cost: Cost = costs.rows[unit][task.name]
    frame = queue.pop(0)
    frame.status, frame.unit, frame.start, frame.energy = "running", unit, now, _float32(cost.energy_mj)
    frame.end = _float32(now + _float32(_float32(cost.latency_ms * CYCLES_PER_MS) / CYCLES_PER_MS))
    running[unit] = frame
    return True


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def patterns(scenario: Scenario) -> Iterator[tuple[float, dict[str, list[bool]]]]:
    """Every outcome of the coins of a run, with its probability. Raises UsageError where there are too many to go
    through."""
    gated = [(task, requests(task)) for task in scenario.tasks if 0 < task.probability < 1]
    never = {task.name: [False] * requests(task) for task in scenario.tasks if task.probability == 0}
    count = sum(number for _, number in gated)
    if count > MOST_COINS:
        raise UsageError(
            f"scenario {scenario.name!r} has {count} coins; up to {MOST_COINS} can be gone through: use seeds"
        )
    for flat in itertools.product((False, True), repeat=count):
        left, coins, probability = iter(flat), dict(never), 1.0
        for task, number in gated:
            coins[task.name] = [next(left) for _ in range(number)]
            for heads in coins[task.name]:
                probability *= task.probability if heads else 1 - task.probability
        yield probability, coins


def write_schedule(timeline: Timeline, path: str | Path, append: bool = True) -> Path:
    """The completed frames in the columns of the official program, by unit. It appends, header included, as that."""
    network = {task.name: task.network for task in timeline.scenario.tasks}
    done = sorted((f for f in timeline.frames if f.status == "done"), key=lambda frame: (frame.unit, frame.end))
    lines = [",".join(COLUMNS)]
    for frame in done:
        times = (frame.arrival, frame.start, frame.deadline, frame.end, frame.lateness, frame.energy)
        lines.append(",".join([str(frame.unit), network[frame.task], str(frame.number), *(f"{t:.6f}" for t in times)]))
    try:
        with open(path, "a" if append else "w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        raise JettisonError(f"cannot write {path}: {error.strerror}") from error
    return Path(path)
