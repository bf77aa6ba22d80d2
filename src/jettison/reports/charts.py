"""The charts of a run's report: plain numbers in, plotly figures out. A chart must suit any width, desktop or phone.

All texts are escaped before plotly gets them: plotly interprets some HTML, and the names of models, texts and tasks are
not trusted.
"""

import html
import re
from collections.abc import Mapping, Sequence
from math import ceil, floor, inf, log10
from os.path import commonprefix
from typing import Any

import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup

from jettison.reports.error_map import ErrorMap

# Distinguishable with red-green colour blindness, and readable on white and on near-black.
COLOURS = {"original": "#8a939c", "quantized": "#e08a1e", "compressed": "#e08a1e", "recovered": "#2b83c6"}
RUN_COLOURS = ("#2b6cb0", "#c2410c", "#0f8a5f", "#9d4edd", "#8a6d00", "#b83280", "#4a5560", "#0e7c86")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
POINTS = 400  # points of a curve at most; more cannot be seen
FEW = 16  # blocks; up to this many, a cell has room for a number on a phone
CLEAR = "rgba(0,0,0,0)"
LABEL = 24  # characters of a name beside an axis; more would leave no room for the chart on a phone
# No toolbar and no zoom: on a touch screen, a finger that scrolls the page must not move a chart.
CONFIG = {"displayModeBar": False, "responsive": True, "scrollZoom": False, "showTips": False}


def embed(figure: go.Figure, name: str) -> Markup:
    """Return the figure as HTML, for a page that contains plotly.js.

    name: the id of the chart. It is fixed, so that the same run gives the same bytes.
    """
    return Markup(plotly.io.to_html(figure, config=CONFIG, include_plotlyjs=False, full_html=False, div_id=name))


def plain(text: str) -> str:
    """Escape a text for plotly. Quotes are kept, since plotly does not know their escapes."""
    return html.escape(text, quote=False)


def label(name: str) -> str:
    """Shorten a name so that it fits beside an axis, and escape it."""
    return plain(name if len(name) <= LABEL else name[: LABEL - 1] + "…")


def labels(names: Sequence[str]) -> list[str]:
    """Shorten and escape names of one axis such that no two look alike.

    If a name is too long, the words that all names begin with are left out, and then the middle of names that are still
    too long. Names that are then equal get a number.
    """
    short = list(names)
    if any(len(name) > LABEL for name in names):
        prefix = commonprefix(short)  # noqa: RUF071 (compares characters: most names are not paths)
        words = re.match(r".*[\s/\\_.:-]", prefix, re.DOTALL) if len(short) > 1 else None
        short = ["…" + name[words.end() :] for name in short] if words else short
        half = LABEL // 2
        short = [name if len(name) <= LABEL else f"{name[: LABEL - half - 1]}…{name[-half:]}" for name in short]
    for index, name in enumerate(short):
        if short.count(name) > 1:
            short[index] = f"{name[: LABEL - 4]} ({index + 1})"
    return [plain(name) for name in short]


def stage_bars(values: Mapping[str, float], captions: Sequence[str]) -> go.Figure:
    """Draw one bar per stage, with its caption at the end. A value of no stage, such as a budget, is an outline."""
    bars = go.Bar(
        x=list(values.values()),
        y=list(values),
        orientation="h",
        marker={
            "color": [COLOURS.get(stage, CLEAR) for stage in values],
            "line": {"color": COLOURS["original"], "width": [0 if stage in COLOURS else 1.5 for stage in values]},
        },
        text=[plain(caption) for caption in captions],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure = blank(bars, height=34 * len(values) + 16)
    return _bar_axes(figure, max(values.values()), max(map(len, captions)))


def distances(stages: Mapping[str, Sequence[float]], texts: Sequence[str]) -> go.Figure:
    """Draw the KL from the original: for every stage one bar per text."""
    figure = blank(height=(26 * len(stages) + 18) * len(texts) + 16, barmode="group", bargap=0.3)
    for stage, values in stages.items():
        figure.add_bar(
            x=list(values),
            y=list(range(len(texts))),
            orientation="h",
            name=stage,
            marker_color=COLOURS[stage],
            text=[f"{value:.4f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    figure.update_yaxes(tickvals=list(range(len(texts))), ticktext=labels(texts))
    excess = max(0, max(map(len, texts)) - LABEL // 2)  # characters of long labels take room from the bars
    longest = max(value for values in stages.values() for value in values)
    return _bar_axes(figure, longest, len("0.0000") + min(excess, LABEL // 2))


def task_accuracies(stages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> go.Figure:
    """Draw the accuracy of every stage on every task as a marker with its error.

    A tick marks the accuracy of guessing.
    stages: stage -> task -> accuracy, standard_error, random.
    """
    tasks = list(dict.fromkeys(task for scores in stages.values() for task in scores))
    figure = blank(height=52 * len(tasks) + 60)
    guessing = {
        task: scores[task]["random"] for scores in stages.values() for task in scores if "random" in scores[task]
    }
    figure.add_scatter(
        x=list(guessing.values()),
        y=[tasks.index(task) for task in guessing],
        mode="markers",
        name="guessing",
        marker={"symbol": "line-ns-open", "size": 26, "color": COLOURS["original"], "line": {"width": 2}},
        hovertemplate="guessing: %{x:.1%}<extra></extra>",
    )
    for stage, scores in stages.items():
        shift = 0.22 * (list(stages).index(stage) - (len(stages) - 1) / 2)  # side by side, so that errors stay visible
        figure.add_scatter(
            x=[scores[task]["accuracy"] for task in scores],
            y=[tasks.index(task) + shift for task in scores],
            error_x={
                "array": [scores[task].get("standard_error") or 0 for task in scores],
                "thickness": 1.5,
                "width": 3,
            },
            mode="markers",
            name=stage,
            marker={"size": 10, "color": COLOURS[stage]},
            hovertemplate=f"{stage}: %{{x:.1%}}<extra></extra>",
        )
    figure.update_xaxes(tickformat=".0%", nticks=6)
    figure.update_yaxes(tickvals=list(range(len(tasks))), ticktext=labels(tasks), range=[len(tasks) - 0.5, -0.5])
    return figure


def error_map(cells: ErrorMap) -> go.Figure:
    """Draw the error of every role (rows) in every block (columns); darker is worse.

    Cells show their bits if there are few enough blocks.
    """
    few = cells.blocks <= FEW
    known = [error for row in cells.errors for error in row if error and 0 < error < inf]
    low, high = (floor(log10(min(known))), ceil(log10(max(known)))) if known else (-1, 0)
    powers = list(range(low, max(high, low + 1) + 1))  # of ten, the ticks of the colour bar
    depth = [[_power(error, low, high) for error in row] for row in cells.errors]
    hover = [
        [[f"{error:.3g}" if error is not None else "", plain(grid or "")] for error, grid in zip(*rows, strict=True)]
        for rows in zip(cells.errors, cells.grids, strict=True)
    ]
    heat = go.Heatmap(
        z=depth,
        x=list(range(cells.blocks)),
        y=labels(cells.roles),
        zmin=powers[0],
        zmax=powers[-1],
        colorscale="YlOrBr",
        xgap=1 if few else 0,
        ygap=1,
        text=[[plain(_bits(grid)) for grid in row] for row in cells.grids],
        texttemplate="%{text}" if few else None,
        customdata=hover,
        hovertemplate="block %{x}, %{y}<br>error %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        hoverongaps=False,
        colorbar={
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "ypad": 4,
            "thickness": 8,
            "tickvals": powers,
            "ticktext": ["1" if power == 0 else f"10<sup>{power}</sup>" for power in powers],
            "outlinewidth": 0,
        },
    )
    figure = blank(heat, height=32 * len(cells.roles) + 70)
    figure.update_xaxes(showgrid=False, dtick=1 if few else None)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticklabelstandoff=4)
    return figure


def _power(error: float | None, low: float, high: float) -> float | None:
    """Return log10 of an error, at most ``high``; ``low`` for an error of 0, None for no error or NaN."""
    return None if error is None or error != error else min(log10(error), high) if error > 0 else low


def _bits(grid: str | None) -> str:
    """Return the bits of a grid: "2" for "int2 g64 sym", "2/4" for experts on two grids."""
    return "/".join(part.partition(" ")[0].removeprefix("int") for part in grid.split(" / ")) if grid else ""


def curve(losses: Sequence[float]) -> go.Figure:
    """Draw the loss of every training step, thinned to POINTS points, with its running mean on top."""
    steps = thin(len(losses))
    figure = blank(height=300)
    for values, width, opacity in ((losses, 1, 0.4), (running_mean(losses), 2.5, 1)):
        figure.add_scatter(
            x=[step + 1 for step in steps],
            y=[values[step] for step in steps],
            mode="lines",
            opacity=opacity,
            line={"color": COLOURS["recovered"], "width": width},
            hovertemplate="step %{x}: %{y:.4f}<extra></extra>",
        )
    return _loss_axes(figure)


def curves(losses: Mapping[int, Sequence[float]]) -> go.Figure:
    """Draw the running means of the losses of several runs. losses: number of the run -> loss of every step."""
    figure = blank(height=320)
    for number, values in losses.items():
        steps, means = thin(len(values)), running_mean(values)
        figure.add_scatter(
            x=[step + 1 for step in steps],
            y=[means[step] for step in steps],
            mode="lines",
            line={"color": run_colour(number), "width": 2},
            hovertemplate=f"run {number}, step %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    return _loss_axes(figure)


def scatter(points: Mapping[int, tuple[float, float]], original: float | None, score: str = "perplexity") -> go.Figure:
    """Draw size in MB against perplexity or another score, with a numbered disc per run.

    points: number of the run -> (bytes, score).
    original: score of the original, drawn as a dashed line; None for no line.
    """
    figure = blank(height=320)
    figure.add_scatter(
        x=[size / 1e6 for size, _ in points.values()],
        y=[perplexity for _, perplexity in points.values()],
        mode="markers+text",
        text=[f"<b>{number}</b>" for number in points],
        textfont={"color": "white", "size": 12},
        marker={"size": 24, "color": [run_colour(number) for number in points], "line": {"color": "white", "width": 1}},
        cliponaxis=False,
        hovertemplate=f"run %{{text}}: %{{x:,.2f}} MB, {score} %{{y:.2f}}<extra></extra>",
    )
    figure.update_xaxes(nticks=6)
    figure.update_yaxes(nticks=6)
    if original is not None:
        figure.add_hline(y=original, line_dash="dash", line_width=1.5, line_color=COLOURS["original"])
    return figure


def run_colour(number: int) -> str:
    """Return the colour of a run. Runs are numbered from 1; colours repeat, numbers do not."""
    return RUN_COLOURS[(number - 1) % len(RUN_COLOURS)]


def thin(count: int) -> list[int]:
    """Return up to POINTS indices into a list of ``count``, evenly spread, including the first and the last."""
    if count <= POINTS:
        return list(range(count))
    return [round(point * (count - 1) / (POINTS - 1)) for point in range(POINTS)]


def window(count: int) -> int:
    """Return the number of steps that the running mean of ``count`` losses covers."""
    return min(max(1, count // 20), 50)


def running_mean(losses: Sequence[float]) -> list[float]:
    """Return, at every step, the mean of the last ``window`` losses; at the beginning the mean of all losses so far."""
    width, total, means = window(len(losses)), 0.0, []
    for step, loss in enumerate(losses):
        total += loss - (losses[step - width] if step >= width else 0.0)
        means.append(total / min(step + 1, width))
    return means


def _bar_axes(figure: go.Figure, longest: float, letters: int) -> go.Figure:
    """Set the axes of a bar chart, with room right of the longest bar for a caption of ``letters`` characters."""
    figure.update_xaxes(visible=False, range=[0, longest * (1.1 + 0.06 * letters) or 1])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6)
    return figure


def _loss_axes(figure: go.Figure) -> go.Figure:
    """Set the axes of a loss curve: steps from 0, losses on a log scale."""
    values = [value for trace in figure.data for value in trace.y if value > 0]
    figure.update_xaxes(nticks=6, rangemode="tozero")
    figure.update_yaxes(type="log")
    if values:
        figure.update_yaxes(tickvals=(ticks := log_ticks(min(values), max(values))), ticktext=[f"{t:g}" for t in ticks])
    return figure


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values within a range, as ticks: plotly's own would put a single tick in less than a decade."""
    decades = log10(high / low)
    digits = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    return [tick for power in powers for digit in digits if low <= (tick := float(f"{digit}e{power}")) <= high]


def blank(*traces: Any, height: int, **layout: Any) -> go.Figure:
    """Return a figure in the style of the pages: transparent, no legend, no zoom. height: in pixels."""
    figure = go.Figure(traces)
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        showlegend=False,
        dragmode=False,
        font={"family": FONT, "size": 13},
        margin={"l": 4, "r": 12, "t": 8, "b": 8},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
    )
    figure.update_layout(**layout)
    axis = {"fixedrange": True, "automargin": True, "zeroline": False}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
