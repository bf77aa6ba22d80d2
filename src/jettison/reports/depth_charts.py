"""The charts about depth: subnets of a search, how often each block was pruned, gates, losses."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from jettison.reports.charts import COLOURS, FEW, blank, log_ticks, running_mean, thin

CHOSEN, OTHER, TRAINED = COLOURS["compressed"], "#9db7cf", COLOURS["recovered"]
MOST = 2000  # subnets that are drawn
BEST = 0.2  # of the subnets: those that ``often`` counts


def _blocks(genome: str) -> str:
    """Return the pruned blocks in words."""
    return ", ".join(str(number) for number, bit in enumerate(genome) if bit == "1") or "none"


def _points(points: Mapping[str, tuple[float, float]], chosen: str) -> list[go.Scatter]:
    """Return the subnets as dots, the chosen one larger. points: genome -> x and accuracy."""
    others = dict(list({name: point for name, point in points.items() if name != chosen}.items())[:MOST])
    traces = []
    for named, colour, size in ((others, OTHER, 8), ({n: p for n, p in points.items() if n == chosen}, CHOSEN, 15)):
        traces.append(
            go.Scatter(
                x=[x for x, _ in named.values()],
                y=[100 * accuracy for _, accuracy in named.values()],
                mode="markers",
                marker={"size": size, "color": colour, "line": {"color": "white", "width": 1}},
                customdata=[_blocks(name) for name in named],
                cliponaxis=False,
                hovertemplate="blocks %{customdata}<br>%{x}: %{y:.1f} %<extra></extra>",
            )
        )
    return traces


def subnets(
    points: Mapping[str, tuple[float, float]], chosen: str, trained: Mapping[str, tuple[float, float]]
) -> go.Figure:
    """Draw accuracy against latency.

    points: genome -> share of the original's latency, accuracy.
    trained: name -> the same of the original and of the pruned model after its training, drawn as diamonds.
    """
    figure = blank(*_points(points, chosen), height=340)
    figure.add_scatter(
        x=[latency for latency, _ in trained.values()],
        y=[100 * accuracy for _, accuracy in trained.values()],
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 14,
            "color": [COLOURS["original"] if name == "original" else TRAINED for name in trained],
            "line": {"color": "white", "width": 1},
        },
        customdata=["original" if name == "original" else "pruned, after its training" for name in trained],
        cliponaxis=False,
        hovertemplate="%{customdata}<br>%{x:.3f}: %{y:.1f} %<extra></extra>",
    )
    figure.update_xaxes(nticks=7)
    figure.update_yaxes(nticks=6)
    return figure


def ranked(points: Mapping[str, tuple[float, float]], chosen: str) -> go.Figure:
    """Draw the accuracies of subnets with as many pruned blocks, the best first. points: genome -> blocks, accuracy."""
    order = sorted(points, key=lambda name: -points[name][1])
    figure = blank(*_points({name: (rank + 1, points[name][1]) for rank, name in enumerate(order)}, chosen), height=300)
    figure.update_xaxes(nticks=6, rangemode="tozero")
    figure.update_yaxes(nticks=6)
    return figure


def by_blocks(points: Mapping[str, tuple[float, float]], chosen: str) -> go.Figure:
    """Draw accuracies against the number of pruned blocks. points: genome -> blocks, accuracy."""
    figure = blank(*_points(points, chosen), height=300)
    figure.update_xaxes(dtick=1 if max(count for count, _ in points.values()) <= FEW else None)
    figure.update_yaxes(nticks=6)
    return figure


def _bars(values: Sequence[float], genome: str, hover: str, height: int = 220) -> go.Figure:
    """Draw a bar for every block; those of pruned blocks have the colour of the chosen subnet."""
    bars = go.Bar(
        x=list(range(len(values))),
        y=list(values),
        marker_color=[CHOSEN if bit == "1" else OTHER for bit in genome],
        hovertemplate=hover,
    )
    figure = blank(bars, height=height, bargap=0.25)
    figure.update_xaxes(showgrid=False, dtick=1 if len(values) <= FEW else None)
    figure.update_yaxes(nticks=5)
    return figure


def often(points: Mapping[str, tuple[float, float | None]], chosen: str) -> go.Figure:
    """Draw in what share of the best subnets each block was pruned. points: genome -> accuracy, latency."""
    order = sorted(points, key=lambda name: -points[name][0])
    best = order[: max(3, round(BEST * len(order)))]
    shares = [100 * sum(name[block] == "1" for name in best) / len(best) for block in range(len(chosen))]
    figure = _bars(shares, chosen, "block %{x}: pruned in %{y:.0f} %<extra></extra>", height=320)
    figure.update_yaxes(range=[0, 104])
    return figure


def gates(values: Sequence[float], chosen: str) -> go.Figure:
    """Draw the gates of all blocks; the lowest were pruned."""
    return _bars(values, chosen, "block %{x}: gate %{y:.4g}<extra></extra>")


def losses(steps: Mapping[int, float]) -> go.Figure:
    """Draw the loss of a training, and its running mean. steps: step -> loss."""
    numbers, values = list(steps), list(steps.values())
    shown = thin(len(values))
    figure = blank(height=240)
    for drawn, width, opacity in ((values, 1, 0.4), (running_mean(values), 2.5, 1)):
        figure.add_scatter(
            x=[numbers[at] + 1 for at in shown],
            y=[drawn[at] for at in shown],
            mode="lines" if len(shown) > 1 else "markers",
            opacity=opacity,
            line={"color": TRAINED, "width": width},
            hovertemplate="step %{x}: %{y:.4f}<extra></extra>",
        )
    figure.update_xaxes(nticks=6, rangemode="tozero")
    positive = [value for value in values if value > 0]
    if positive:
        ticks = log_ticks(min(positive), max(positive))
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return figure
