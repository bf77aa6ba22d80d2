"""The charts about a program: which block is computed at which call, and quality against cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from jettison.reports.charts import COLOURS, FEW, RUN_COLOURS, blank, labels

COMPUTED, REUSED = COLOURS["recovered"], "#e3e8ee"
LOWEST, HIGHEST = 220, 900  # pixels
ROW = 22  # pixels of a block, where there are few


def gate_map(rows: Sequence[str], units: Sequence[str]) -> go.Figure:
    """Draw the gates: calls of the denoiser from left to right, blocks from top to bottom; filled: computed.

    rows: a text for every call, with 1 for every block that is computed.
    units: paths of the blocks.
    """
    blocks = range(len(units))
    few = len(units) <= 2 * FEW and len(rows) <= 4 * FEW
    heat = go.Heatmap(
        z=[[int(row[block] == "1") for row in rows] for block in blocks],
        x=list(range(1, len(rows) + 1)),
        y=list(blocks),
        zmin=0,
        zmax=1,
        colorscale=[[0, REUSED], [1, COMPUTED]],
        showscale=False,
        xgap=1 if few else 0,
        ygap=1 if few else 0,
        text=[[("reused", "computed")[int(row[block] == "1")] for row in rows] for block in blocks],
        customdata=[[labels([units[block]])[0]] * len(rows) for block in blocks],
        hovertemplate="call %{x}, %{customdata}: %{text}<extra></extra>",
    )
    figure = blank(heat, height=min(HIGHEST, max(LOWEST, ROW * len(units) + 50)))
    figure.update_xaxes(showgrid=False, nticks=12, title={"text": "call of the denoiser", "font": {"size": 12}})
    ticks = {"tickvals": list(blocks), "ticktext": labels(units)} if few else {"nticks": 12}
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6, **ticks)
    return figure


def method_colour(number: int) -> str:
    """Return the colour of a method, by its place in the list."""
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def quality(points: Mapping[str, Sequence[Mapping[str, Any]]], own: tuple[str, float]) -> go.Figure:
    """Draw structural similarity to full runs against the share of a full run's FLOPs, a line for every method.

    points: method -> entries with flops, ssim and the samples of the seeds, whose range is drawn.
    own: the method and the share of the folder's own program, which is drawn larger.
    """
    figure = blank(height=340)
    for number, (method, entries) in enumerate(points.items()):
        entries = sorted(entries, key=lambda entry: entry["flops"])
        means = [entry["ssim"] for entry in entries]
        spread = [entry.get("samples") or [entry["ssim"]] for entry in entries]
        is_own = [(method, entry["flops"]) == own for entry in entries]
        figure.add_scatter(
            x=[100 * entry["flops"] for entry in entries],
            y=means,
            error_y={
                "array": [max(samples) - mean for samples, mean in zip(spread, means, strict=True)],
                "arrayminus": [mean - min(samples) for samples, mean in zip(spread, means, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": method_colour(number), "width": 2},
            marker={
                "size": [15 if mine else 8 for mine in is_own],
                "symbol": ["diamond" if mine else "circle" for mine in is_own],
                "color": method_colour(number),
                "opacity": 1,
                "line": {"color": "white", "width": 1},
            },
            cliponaxis=False,
            hovertemplate=f"{labels([method])[0]}, %{{x:.1f}} % of the FLOPs: SSIM %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(nticks=8, ticksuffix=" %")
    figure.update_yaxes(nticks=6)
    return figure
