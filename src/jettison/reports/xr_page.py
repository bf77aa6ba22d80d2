"""The page of runs of XRBench, one self-contained file: scores, timelines, heat maps, tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.core.files import write_text
from jettison.reports import charts, xr_charts
from jettison.reports.render import render

SHOWN_MS = 500.0  # ms of a timeline that are drawn


def write_xr(
    path: str | Path,
    title: str,
    *,
    lead: str = "",
    runs: Sequence[Mapping[str, Any]] = (),
    maps: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[Mapping[str, Any]] = (),
    start_ms: float = 0.0,
    span_ms: float = SHOWN_MS,
) -> Path:
    """Write the page ``path`` and return it. The same data give the same bytes.

    runs: each with name, facts (label, value), score (as ``ScenarioScore.to_dict``), and tasks, units and frames (see
        ``xr_charts.gantt``).
    maps: each with title, caption, rows, columns, values.
    tables: each with title, columns, rows of texts.
    start_ms, span_ms: the part of the timelines that is drawn.
    """
    shown = [
        dict(run) | {"chart": charts.embed(xr_charts.gantt(run, start_ms, span_ms), f"timeline-{number}")}
        for number, run in enumerate(runs)
    ]
    scores = [run["score"]["overall"] for run in runs]
    bars = xr_charts.score_bars([run["name"] for run in runs], scores) if len(runs) > 1 else None
    heat_maps = [
        dict(entry)
        | {"chart": charts.embed(xr_charts.heat_map(entry["rows"], entry["columns"], entry["values"]), f"map-{number}")}
        for number, entry in enumerate(maps)
    ]
    page = render(
        "xr.html.jinja",
        title=title,
        lead=lead,
        runs=shown,
        bars=charts.embed(bars, "score-bars") if bars else None,
        maps=heat_maps,
        tables=list(tables),
        window=(start_ms, start_ms + span_ms),
    )
    write_text(Path(path), page)
    return Path(path)
