"""The runtime of the official program, reproduced exactly: ``compat="v0.1"``.

It is reconstructed from the program's behaviour (repository XRBench/XRBench-MLSys2023, commit 8915666), including
behaviour that looks unintended:

1.  Frame n is injected at the first event at or after n intervals. An event is a tick of the fastest task or a
    completion. At most one frame of a model is injected per event.
2.  Models are served in the byte order of their networks' names.
3.  Intervals are whole milliseconds: 1000 // fps.
4.  The program stops when the last frame has been injected. Frames that run or wait then are not logged.
5.  Frame n may run when the model it depends on has completed more than n frames, whichever frames these were.
6.  A unit is free 0.01 ms before a completion; the true time of completion is logged. A waiting frame is dropped once
    its deadline has passed.
7.  A dispatch takes the idle unit with the lowest latency (or energy-delay product), the first of equals; it never
    waits for a busy unit. A pass dispatches at most one frame per model; passes repeat until one dispatches nothing.
8.  A frame that is not requested (its coin fails) is neither run nor dropped.
9.  Times are float32, and so are the cycles from which latencies are computed.
10. Dropped frames count twice in the score: see ``scores.score``.
11. ``write_schedule`` appends to the file.
12. Without a seed, the current time in seconds is the seed.
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
TOLERANCE_MS = 0.01  # see point 6
MOST_COINS = 16  # coins whose outcomes are enumerated: at most 2**16 of them
COLUMNS = (
    "AcceleratorID", "Model Name", "Frame ID", "Injection Time (ms)", "Dispatch Time (ms)", "Deadline Time (ms)",
    "Completion Time (ms)", "Violated Deadline Amount (ms)", "Energy (mJ)",
)  # fmt: skip
PREFERS = {
    "latency-greedy": lambda cost: cost.latency_ms,
    "edp-greedy": lambda cost: cost.latency_ms * cost.energy_mj,
}


def interval(task: Task) -> int:
    """Return the whole milliseconds between two frames of a task."""
    return int(1000 / task.fps)


def requests(task: Task) -> int:
    """Return the number of frames of a task in a run."""
    return HORIZON_MS // interval(task)


def simulate_official(
    scenario: Scenario,
    costs: Costs,
    scheduler: str = "latency-greedy",
    seed: int | None = None,
    coins: Mapping[str, Sequence[bool]] | None = None,
) -> Timeline:
    """Simulate 700 ms of a scenario as the official program does.

    scheduler: ``latency-greedy`` or ``edp-greedy``.
    seed: of the coins; None takes the current time in seconds.
    coins: by task, for every frame whether it is requested; if None, they are drawn from ``seed``.
    The random numbers are Python's, not those of the C library: a seed does not give the outcome that it gives in the
    official program, but the set of possible outcomes is the same.
    Raises UsageError for an unknown scheduler and for more than 1000 frames per second.
    """
    if scheduler not in PREFERS:
        raise unknown("scheduler", scheduler, PREFERS, " of compat v0.1")
    if any(task.fps > 1000 for task in scenario.tasks):
        raise UsageError(
            f"scenario {scenario.name!r}: compat v0.1 has intervals of whole milliseconds, so at most 1000 fps"
        )
    seed = int(time.time()) if seed is None else seed
    tasks = sorted(scenario.tasks, key=lambda task: task.network.encode())
    if coins is None:
        draw = random.Random(seed).random
        coins = {t.name: [draw() < t.probability for _ in range(requests(t))] for t in tasks if t.probability < 1}
    frames = list(_run(tasks, costs, PREFERS[scheduler], coins))
    return Timeline(scenario, costs.units, float(HORIZON_MS), tuple(frames), scheduler, seed, "v0.1")


def _run(tasks: list[Task], costs: Costs, prefers, coins: Mapping[str, Sequence[bool]]) -> list[Frame]:
    """Run the loop of the official program. tasks: in the order in which they are served. Returns all frames."""
    queues: dict[str, list[Frame]] = {task.name: [] for task in tasks}  # by task, the frames that wait
    injected, completed = dict.fromkeys(queues, 0), dict.fromkeys(queues, 0)  # frames by task
    running: list[Frame | None] = [None] * len(costs.units)
    tick = min(map(interval, tasks))
    now, next_tick, frames = 0.0, tick, []
    while True:
        # Inject at most one frame per task (point 1).
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
        # Free the units whose frames have ended (point 6).
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
        # A list, not a generator: a pass tries every task before ``any`` decides whether to repeat (point 7).
        while any([_dispatch(task, queues[task.name], completed, running, costs, prefers, now) for task in tasks]):
            pass
        # The next event is the next tick or the next completion.
        while next_tick <= now:
            next_tick += tick
        now = min([next_tick, *(frame.end for frame in running if frame and frame.end > now)])
    for frame in frames:
        if frame.status in ("waiting", "running"):
            frame.status, frame.end = "unlogged", None
    return frames


def _dispatch(task: Task, queue, completed, running, costs: Costs, prefers, now: float) -> bool:
    """Start the first frame of the queue if it may run and a unit is idle. Returns whether a frame was started."""
    idle = [unit for unit, frame in enumerate(running) if frame is None and task.name in costs.rows[unit]]
    if not queue or not idle or any(completed[name] <= queue[0].number for name in task.after):
        return False
    unit = min(idle, key=lambda unit: prefers(costs.rows[unit][task.name]))
    cost: Cost = costs.rows[unit][task.name]
    frame = queue.pop(0)
    frame.status, frame.unit, frame.start, frame.energy = "running", unit, now, _float32(cost.energy_mj)
    frame.end = _float32(now + _float32(_float32(cost.latency_ms * CYCLES_PER_MS) / CYCLES_PER_MS))  # point 9
    running[unit] = frame
    return True


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def patterns(scenario: Scenario) -> Iterator[tuple[float, dict[str, list[bool]]]]:
    """Yield every outcome of the coins of a run as (probability, coins by task).

    Raises UsageError for more than 16 coins.
    """
    random_tasks = [(task, requests(task)) for task in scenario.tasks if 0 < task.probability < 1]
    never = {task.name: [False] * requests(task) for task in scenario.tasks if task.probability == 0}
    count = sum(number for _, number in random_tasks)
    if count > MOST_COINS:
        raise UsageError(
            f"scenario {scenario.name!r} has {count} coins; the outcomes of at most {MOST_COINS} can be enumerated: "
            "use seeds"
        )
    for outcome in itertools.product((False, True), repeat=count):
        remaining, coins, probability = iter(outcome), dict(never), 1.0
        for task, number in random_tasks:
            coins[task.name] = [next(remaining) for _ in range(number)]
            for heads in coins[task.name]:
                probability *= task.probability if heads else 1 - task.probability
        yield probability, coins


def write_schedule(timeline: Timeline, path: str | Path, append: bool = True) -> Path:
    """Write the completed frames as CSV in the columns of the official program, sorted by unit and time of completion.

    append: add to an existing file, header included, as the official program does. Returns the path. Raises
    JettisonError if the file cannot be written.
    """
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
