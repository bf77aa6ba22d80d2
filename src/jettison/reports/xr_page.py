"""Runs of XRBench as one self-contained page: scores, timelines, heat maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.core.files import write_text
from jettison.reports import charts, xr_charts
from jettison.reports.render import render

SHOWN_MS = 500.0  # of a timeline


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
    """Write the page ``path``; the same data give the same bytes.

    runs: each name, facts (label, value), score (as ``ScenarioScore.to_dict``), tasks, units, frames (see
    ``xr_charts.gantt``). maps: each title, rows, columns, values. tables: each title, columns, rows of texts.
    """
    shown = [
        dict(run) | {"chart": charts.embed(xr_charts.gantt(run, start_ms, span_ms), f"timeline-{place}")}
        for place, run in enumerate(runs)
    ]
    scores = [run["score"]["overall"] for run in runs]
    bars = xr_charts.score_bars([run["name"] for run in runs], scores) if len(runs) > 1 else None
    drawn = [
        dict(each)
        | {"chart": charts.embed(xr_charts.heat_map(each["rows"], each["columns"], each["values"]), f"map-{place}")}
        for place, each in enumerate(maps)
    ]
    page = render(
        "xr.html.jinja",
        title=title,
        lead=lead,
        runs=shown,
        bars=charts.embed(bars, "score-bars") if bars else None,
        maps=drawn,
        tables=list(tables),
        window=(start_ms, start_ms + span_ms),
    )
    write_text(Path(path), page)
    return Path(path)
