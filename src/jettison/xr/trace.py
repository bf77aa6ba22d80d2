"""Files of a run: a trace for Perfetto and chrome://tracing, and JSON that can be read back."""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.files import write_text
from jettison.xr.definitions import find_scenario
from jettison.xr.frames import Frame, Timeline, check_run

UNITS, TASKS = 1, 2  # process ids in a trace: one process groups the tracks of the units, the other those of the tasks
STATUSES = ("waiting", "running", "done", "dropped", "skipped", "unlogged")
COLUMNS = ("task", "number", "arrival", "deadline", "status", "energy", "spans")


def write_trace(timeline: Timeline, path: str | Path) -> Path:
    """Write a run in Chrome's trace event format, which ui.perfetto.dev opens. Returns the path.

    The trace has one track per unit with the frames that ran there, one track per task with its frames from arrival to
    deadline and its drops, and arrows from a frame's output to the frame that waited for it.
    """
    data = {"displayTimeUnit": "ms", "traceEvents": list(_events(timeline))}
    write_text(Path(path), json.dumps(data))
    return Path(path)


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    # Phases ("ph") of the format: M names a track, X is a bar with a duration, b and e begin and end an asynchronous
    # bar, i is an instant, s and f are the two ends of an arrow. Times ("ts", "dur") are in microseconds.
    rows = {task.name: index for index, task in enumerate(timeline.scenario.tasks)}
    track = lambda kind, name, pid, tid=0: {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
    yield track("process_name", f"{timeline.scenario.title}: units", UNITS)
    yield track("process_name", f"{timeline.scenario.title}: tasks", TASKS)
    for unit, name in enumerate(timeline.units):
        yield track("thread_name", f"{unit}: {name}", UNITS, unit)
    for name, row in rows.items():
        yield track("thread_name", f"{name} {timeline.scenario.task(name).model.title}", TASKS, row)
    for identity, frame in enumerate(timeline.frames):
        label, row = f"{frame.task} {frame.number}", rows[frame.task]
        if frame.status == "skipped":
            continue
        figures = {"arrival_ms": frame.arrival, "deadline_ms": frame.deadline, "status": frame.status}
        if frame.status == "done":
            figures |= {"late_ms": frame.lateness, "energy_mj": frame.energy}
        for unit, start, end in frame.spans:
            late = "late" if frame.lateness > 0 else "in time"
            yield {"ph": "X", "name": label, "cat": late, "pid": UNITS, "tid": unit, "ts": 1e3 * start,
                   "dur": 1e3 * (end - start), "args": figures}  # fmt: skip
        window = {"cat": frame.status, "pid": TASKS, "tid": row, "id": identity, "name": frame.task, "args": figures}
        yield {"ph": "b", "ts": 1e3 * frame.arrival, **window}
        yield {"ph": "e", "ts": 1e3 * frame.deadline, **window}
        if frame.status == "dropped":
            yield {
                "ph": "i",
                "s": "t",
                "name": f"{label} dropped",
                "pid": TASKS,
                "tid": row,
                "ts": 1e3 * frame.deadline,
            }
        for number, parent in enumerate(frame.parents):
            if parent.status == frame.status == "done":
                flow = {"cat": "output", "name": "output", "id": 8 * identity + number, "pid": UNITS}
                inside = max(1e3 * parent.start, 1e3 * parent.end - 1)  # an arrow must begin inside a bar
                yield {"ph": "s", "tid": parent.unit, "ts": inside, **flow}
                yield {"ph": "f", "bp": "e", "tid": frame.unit, "ts": 1e3 * frame.start, **flow}


def to_dict(timeline: Timeline) -> dict[str, Any]:
    """Return a run as JSON data. The dependencies between frames (parents, children) are left out."""
    frames = [
        [frame.task, frame.number, frame.arrival, frame.deadline, frame.status, frame.energy, frame.spans]
        for frame in timeline.frames
    ]
    return {
        "scenario": timeline.scenario.name,
        "units": list(timeline.units),
        "horizon_ms": timeline.horizon_ms,
        "scheduler": timeline.scheduler,
        "seed": timeline.seed,
        "compat": timeline.compat,
        "live": timeline.live,
        "columns": list(COLUMNS),
        "frames": frames,
    }


def from_dict(data: dict[str, Any], source: str = "a run") -> Timeline:
    """Rebuild a run from the data of ``to_dict``.

    source: name of the data in error messages. Raises UsageError if the data are not those of a run.
    """
    try:
        scenario, frames = find_scenario(data["scenario"]), []
        if tuple(data["columns"]) != COLUMNS:
            raise ValueError(f"columns {data['columns']}")
        for task, number, arrival, deadline, status, energy, spans in data["frames"]:
            _check_frame([number, arrival, deadline, energy], status, spans, len(data["units"]))
            frame = Frame(scenario.task(task).name, number, arrival, deadline, status=status, energy=energy)
            if spans:
                *pieces, (frame.unit, frame.start, frame.end) = map(tuple, spans)
                frame.pieces = pieces
            frames.append(frame)
        options = {name: data[name] for name in ("horizon_ms", "scheduler", "seed", "compat", "live")}
        if not all(isinstance(unit, str) for unit in data["units"]):
            raise ValueError(f"units {shown(data['units'])}")
        check_run(options["horizon_ms"], 0)
        return Timeline(scenario, tuple(data["units"]), frames=tuple(frames), **options)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{source} is no run of `jettison xr`: {type(error).__name__} {error}") from error


def _check_frame(figures: list[Any], status: Any, spans: Any, units: int) -> None:
    """Raise TypeError or ValueError for a frame that ``to_dict`` cannot have written."""
    numbers = [*figures, *(figure for span in spans for figure in span)]
    if not all(type(number) in (int, float) and isfinite(number) for number in numbers) or status not in STATUSES:
        raise ValueError(f"a frame with {shown([*figures, status])}")
    if any(len(span) != 3 or span[0] not in range(units) for span in spans) or (status == "done" and not spans):
        raise ValueError(f"a frame that is {status}, with spans {shown(spans)}")


def read_timeline(path: str | Path) -> Timeline:
    """Read the run in a file that ``jettison xr run`` or ``live`` wrote with ``--json``. Raises UsageError."""
    try:
        data = read_json(Path(path))
    except JettisonError as error:
        raise UsageError(f"cannot read a run: {error}") from error
    return from_dict(data.get("run", {}), str(path))
