"""The result of a run and its score, as JSON and as an HTML page, and the comparison of several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError
from jettison.reports.xr_page import write_xr
from jettison.xr.frames import Timeline
from jettison.xr.scores import ScenarioScore, score
from jettison.xr.trace import read_timeline, to_dict


def result(timeline: Timeline, scored: ScenarioScore) -> dict[str, Any]:
    """Return what ``--json`` writes: the score, the drop rate, the busy share of every unit, and the run itself."""
    length = max([timeline.horizon_ms, *(end for frame in timeline.frames for _, _, end in frame.spans)])
    busy = [milliseconds / length for milliseconds in timeline.busy_ms]
    return {"score": scored.to_dict(), "drop_rate": timeline.drop_rate, "busy": busy, "run": to_dict(timeline)}


def page_data(timeline: Timeline, scored: ScenarioScore, name: str) -> dict[str, Any]:
    """Return a run in the form that ``reports.xr_page.write_xr`` takes."""
    frames = [
        {"task": f.task, "number": f.number, "arrival": f.arrival, "deadline": f.deadline, "status": f.status,
         "spans": f.spans}
        for f in timeline.frames
    ]  # fmt: skip
    facts = [
        ("scenario", timeline.scenario.title),
        ("run", "live" if timeline.live else f"simulated{', ' + timeline.compat if timeline.compat else ''}"),
        ("units", ", ".join(timeline.units)),
        ("scheduler", timeline.scheduler),
        ("length", f"{timeline.horizon_ms / 1e3:g} s"),
        ("dropped", f"{timeline.drop_rate:.1%}"),
    ]
    tasks = [task.name for task in timeline.scenario.tasks]
    return {"name": name, "facts": facts, "score": scored.to_dict(), "tasks": tasks, "units": timeline.units,
            "frames": frames}  # fmt: skip


def write_page(
    path: str | Path,
    title: str,
    runs: Mapping[str, tuple[Timeline, ScenarioScore]],
    lead: str = "",
    tables: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write an HTML page with the timelines and scores of runs. Returns its path.

    runs: heading -> (timeline, its score). lead: text below the title. tables: as ``write_xr`` takes them.
    """
    pages = [page_data(timeline, scored, name) for name, (timeline, scored) in runs.items()]
    return write_xr(path, title, lead=lead, runs=pages, tables=tables)


def compare(files: Sequence[str | Path], out: str | Path | None = None, drop_penalty: str = "code") -> dict[str, Any]:
    """Score runs that ``--json`` wrote in the same way, and write the page ``out`` if it is not None.

    Returns {"rows": [...]}, per run: name, scenario, live, overall, rt, en, qoe, drop_rate, and the score of every
    model. Raises UsageError for fewer than two files, and for a file that is named twice. The files do not contain the
    accuracies that a run was scored with, so every accuracy counts as 1.
    """
    if len(files) < 2:
        raise UsageError(f"a comparison needs two runs at least; {len(files)} given")
    if len({Path(file).resolve() for file in files}) < len(files):
        raise UsageError(f"{', '.join(map(str, files))}: the same file is named twice")
    names = [Path(file).stem for file in files]
    names = names if len(set(names)) == len(names) else [str(file) for file in files]
    runs = {}
    for name, file in zip(names, files, strict=True):
        timeline = read_timeline(file)
        runs[name] = (timeline, score(timeline, drop_penalty=drop_penalty))
    rows = [
        {
            "name": name,
            "scenario": timeline.scenario.name,
            "live": timeline.live,
            "overall": scored.overall,
            "rt": scored.rt,
            "en": scored.en,
            "qoe": scored.qoe,
            "drop_rate": timeline.drop_rate,
            "models": {model: part.score for model, part in scored.models.items()},
        }
        for name, (timeline, scored) in runs.items()
    ]
    if out is not None:
        write_page(out, f"{len(runs)} runs compared", runs)
    return {"rows": rows}
