"""The charts of XRBench: timelines of units and tasks, and scores by scenario and system. Numbers in, figures out."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from jettison.reports.charts import COLOURS, blank, label, labels, plain, run_colour

LATE, DROPPED, DEADLINE = "#d1242f", "#d1242f", COLOURS["original"]
BAR, WINDOW = 0.62, 0.3  # heights of the bars of running and waiting, as shares of a row
FEW = 16  # columns; up to this many, a cell has room for its number


def gantt(run: Mapping[str, Any], start_ms: float, span_ms: float) -> go.Figure:
    """Draw the timeline of a run.

    The upper rows are the units, in the colours of the tasks that ran there. Below is a row for each task: its frames
    from arrival to deadline (thin, with a stroke at the deadline), when they ran (thick, outlined red if late), and
    dropped frames (crosses at the deadline).
    run: units (names), tasks (names), and frames, each with task, number, arrival, deadline, status and spans, a list
        of [unit, start, end]; times in ms.
    """
    tasks, units = list(run["tasks"]), list(run["units"])
    rows = [*(f"unit {place}" for place in range(len(units))), *tasks]
    end_ms = start_ms + span_ms
    shown = [f for f in run["frames"] if f["status"] != "skipped" and f["arrival"] < end_ms and _last(f) > start_ms]
    figure = blank(height=34 * len(rows) + 60, barmode="overlay")
    for place, task in enumerate(tasks):
        mine, colour = [frame for frame in shown if frame["task"] == task], run_colour(place + 1)
        waits = [(task, f["arrival"], f["deadline"], f, False) for f in mine]
        figure.add_bar(**_bars(waits, WINDOW, colour, 0.25))
        for on_units in (True, False):
            spans = [
                (f"unit {u}" if on_units else task, a, b, f, b > f["deadline"]) for f in mine for u, a, b in f["spans"]
            ]
            figure.add_bar(**_bars(spans, BAR, colour, 1.0))
        figure.add_scatter(
            x=[frame["deadline"] for frame in mine],
            y=[task] * len(mine),
            mode="markers",
            marker={"symbol": "line-ns", "size": 17, "line": {"color": DEADLINE, "width": 1}},
            hoverinfo="skip",
        )
        drops = [frame for frame in mine if frame["status"] == "dropped"]
        figure.add_scatter(
            x=[frame["deadline"] for frame in drops],
            y=[task] * len(drops),
            mode="markers",
            marker={"symbol": "x", "size": 8, "color": DROPPED},
            hovertemplate="dropped at %{x:.1f} ms<extra></extra>",
        )
    figure.update_xaxes(range=[start_ms, end_ms], title="ms", showgrid=True)
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=rows[::-1], showgrid=False, tickvals=rows,
        ticktext=[*(label(f"{place}: {unit}") for place, unit in enumerate(units)), *labels(tasks)],
    )  # fmt: skip
    return figure


def _last(frame: Mapping[str, Any]) -> float:
    """Return the last time in ms at which a frame is drawn."""
    return max([frame["deadline"], *(end for _, _, end in frame["spans"])])


def _bars(spans: Sequence[tuple], height: float, colour: str, opacity: float) -> dict[str, Any]:
    """Return the arguments of a bar trace. spans: (row, start, end, frame, late) each."""
    return {
        "x": [end - start for _, start, end, _, _ in spans],
        "base": [start for _, start, *_ in spans],
        "y": [row for row, *_ in spans],
        "orientation": "h",
        "width": height,
        "opacity": opacity,
        "marker": {
            "color": colour,
            "line": {"color": LATE, "width": [2 if late else 0 for *_, late in spans]},
        },
        "customdata": [[f"{plain(f['task'])} {f['number']}", a, b, f["deadline"]] for _, a, b, f, _ in spans],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]:.1f} to %{customdata[2]:.1f} ms, due "
        "%{customdata[3]:.1f}<extra></extra>",
    }


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> go.Figure:
    """Draw scores from 0 to 100, darker is better; cells show their number if there are few enough columns.

    The parts of a row's name (``social-interaction-a, GE 0.25``) go on lines of their own and are shortened one by one:
    if whole names were shortened, rows would look alike.
    """
    few = len(columns) <= FEW
    parts = [row.split(", ") for row in rows]
    tall = max(34, 17 * max(map(len, parts), default=1) + 6)
    heat = go.Heatmap(
        z=[list(row) for row in values],
        x=[plain(column) for column in columns],
        y=[plain(row) for row in rows],
        zmin=0,
        zmax=100,
        colorscale="Blues",
        xgap=1,
        ygap=1,
        text=[[f"{value:.0f}" for value in row] for row in values],
        texttemplate="%{text}" if few else None,
        hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        showscale=not few,
    )
    figure = blank(heat, height=tall * len(rows) + 70)
    figure.update_xaxes(type="category", showgrid=False, side="top")
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, ticklabelstandoff=4, tickvals=[*map(plain, rows)],
        ticktext=["<br>".join(map(label, names)) for names in parts],
    )  # fmt: skip
    return figure


def score_bars(names: Sequence[str], scores: Sequence[float]) -> go.Figure:
    """Draw a bar per run for its score, from 0 to 100."""
    figure = blank(height=34 * len(names) + 16)
    figure.add_bar(
        x=list(scores),
        y=[plain(name) for name in names],
        orientation="h",
        marker_color=[run_colour(place + 1) for place in range(len(names))],
        text=[f"{score:.1f}" for score in scores],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(visible=False, range=[0, 115])
    figure.update_yaxes(
        autorange="reversed", type="category", ticklabelstandoff=6, color=COLOURS["original"],
        tickvals=[*map(plain, names)], ticktext=labels(names),  # labels: shortened names must not look alike
    )  # fmt: skip
    return figure
