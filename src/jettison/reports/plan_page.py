"""The page of a plan: bits of every block, roofline, time by role, Pareto front, gain over uniform 4 bits."""

from collections.abc import Mapping
from math import log10
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from jettison.core.files import write_text
from jettison.core.numbers import figures, format_rate
from jettison.reports.charts import COLOURS, FEW, blank, embed, labels, log_ticks, plain, run_colour
from jettison.reports.render import render

Data = Mapping[str, Any]
BITS = {16: "#2f4858", 8: "#33658a", 4: "#86bbd8", 3: "#f6ae2d", 2: "#f26419"}


def write_plan(data: Data, out: str | Path) -> Path:
    """Write the page of a plan as one self-contained HTML file, and return its path.

    data: the dictionary that ``plan_data`` returns.
    """
    path = Path(out)
    write_text(path, render("plan.html.jinja", plan=data, plan_charts=plan_charts(data)))
    return path


def plan_charts(data: Data | None) -> dict[str, Any] | None:
    """Return the charts by their names in the template; None for a run that was not planned."""
    if not data:
        return None
    return {
        "bits": dict(sorted(BITS.items())),
        "map": embed(bits_map(data["map"]), "plan-map"),
        "sensitivity": embed(sensitivity_map(data["sensitivity"]), "plan-sensitivity") if data["sensitivity"] else None,
        "roofline": embed(roofline(data["operators"], data["device"]), "plan-roofline"),
        "times": embed(times(data["operators"]["decode"]), "plan-times"),
        "front": embed(front(data), "plan-front") if len(data["front"]) > 1 else None,
        "gains": embed(gains(data["gains"]), "plan-gains") if data["gains"] else None,
    }


def bits_map(cells: list[Data]) -> go.Figure:
    """Draw the bits of every role (rows) in every block (columns) as colours."""
    inside = [cell for cell in cells if cell["block"] is not None]
    roles = list(dict.fromkeys(cell["role"] for cell in inside))
    blocks = 1 + max((cell["block"] for cell in inside), default=0)
    few = blocks <= FEW
    widths = sorted(BITS)
    bits = [[None] * blocks for _ in roles]  # (roles, blocks), index into widths
    words = [[""] * blocks for _ in roles]  # (roles, blocks), text shown on hover
    for cell in inside:
        row = roles.index(cell["role"])
        bits[row][cell["block"]] = widths.index(int(cell["choice"].split()[0]))
        words[row][cell["block"]] = f"{plain(cell['choice'])}<br>expected loss {cell['loss']:.2g}"
    # A colour scale of five steps: each width has its colour from its lower to its upper end.
    steps = [[end, BITS[width]] for index, width in enumerate(widths) for end in (index / 5, (index + 1) / 5)]
    heat = go.Heatmap(
        z=bits,
        y=labels(roles),
        zmin=-0.5,
        zmax=4.5,
        colorscale=steps,
        showscale=False,
        xgap=1,
        ygap=1,
        text=[["" if number is None else str(widths[number]) for number in row] for row in bits],
        texttemplate="%{text}" if few else None,
        customdata=words,
        hovertemplate="block %{x}, %{y}<br>%{customdata}<extra></extra>",
        hoverongaps=False,
    )
    figure = blank(heat, height=34 * len(roles) + 40)
    figure.update_xaxes(showgrid=False, dtick=1 if few else None)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticklabelstandoff=4)
    return figure


def sensitivity_map(cells: list[Data]) -> go.Figure:
    """Draw the expected loss of every role (rows) in every block (columns); darker is more."""
    roles = list(dict.fromkeys(cell["role"] for cell in cells))
    blocks = 1 + max(cell["block"] for cell in cells)
    losses = [[None] * blocks for _ in roles]
    for cell in cells:
        losses[roles.index(cell["role"])][cell["block"]] = cell["loss"] if cell["loss"] > 0 else None
    heat = go.Heatmap(
        z=[[None if loss is None else log10(loss) for loss in row] for row in losses],
        y=labels(roles),
        colorscale="YlOrBr",
        showscale=False,
        xgap=1,
        ygap=1,
        customdata=losses,
        hovertemplate="block %{x}, %{y}: %{customdata:.2g} nats<extra></extra>",
        hoverongaps=False,
    )
    figure = blank(heat, height=34 * len(roles) + 40)
    figure.update_xaxes(showgrid=False, dtick=1 if blocks <= FEW else None)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticklabelstandoff=4)
    return figure


def roofline(phases: Mapping[str, list[Data]], device: Data) -> go.Figure:
    """Draw flops per byte against flop/s: the device's roof, and what each role reaches under it.

    Filled markers are decoding, hollow ones are reading a prompt.
    """
    figure = blank(height=340)
    points = [row for rows in phases.values() for row in rows if row["flops"] > 0]
    if not points:
        return figure
    intensity = [row["flops"] / row["moved"] for row in points]
    ridge = device["flops"] / device["bandwidth"]
    low, high = min(intensity) / 3, max(*intensity, ridge) * 5
    figure.add_scatter(
        x=[low, ridge, high],
        y=[low * device["bandwidth"], device["flops"], device["flops"]],
        mode="lines",
        line={"color": COLOURS["original"], "width": 2},
        name="roof",
        hoverinfo="skip",
    )
    roles = list(dict.fromkeys(row["role"] for row in points))
    for phase, rows in phases.items():
        for row in rows:
            if row not in points:
                continue
            colour = run_colour(roles.index(row["role"]) + 1)
            figure.add_scatter(
                x=[row["flops"] / row["moved"]],
                y=[row["flops"] / row["seconds"]],
                mode="markers",
                name=plain(row["role"]),
                text=[plain(row["role"])],
                showlegend=phase == "decode",
                marker={
                    "size": 12,
                    "color": colour,
                    "symbol": "circle" if phase == "decode" else "circle-open",
                    "line": {"width": 2, "color": colour},
                },
                hovertemplate=f"%{{text}}, {phase}: %{{x:,.3r}} flops per byte, %{{y:.3s}}flop/s<extra></extra>",
            )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "font": {"color": "#7a858f"}})
    figure.update_xaxes(type="log", exponentformat="SI", dtick=1)
    figure.update_yaxes(type="log", exponentformat="SI", dtick=1)
    return figure


def times(rows: list[Data]) -> go.Figure:
    """Draw the time of one step of decoding, a bar per role, the longest first."""
    rows = sorted(rows, key=lambda row: -row["seconds"])
    total = sum(row["seconds"] for row in rows)
    figure = blank(height=30 * len(rows) + 16)
    figure.add_bar(
        x=[row["seconds"] for row in rows],
        y=labels([row["role"] for row in rows]),
        orientation="h",
        marker_color=COLOURS["recovered"],
        text=[f"{figures(1e3 * row['seconds'])} ms, {row['seconds'] / total:.0%}" for row in rows],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(visible=False, range=[0, 1.7 * rows[0]["seconds"]])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6)
    return figure


def front(data: Data) -> go.Figure:
    """Draw memory (in GB, or MB if small) against expected loss: the Pareto front, the presets, and this plan."""
    figure = blank(height=340)
    points = data["front"]
    scale, unit = (1e9, "GB") if data["memory"] > 1e9 else (1e6, "MB")
    hover = f"%{{text}}: %{{x:,.2f}} {unit}, loss %{{y:.3g}}<extra></extra>"
    presets = [preset for preset in data["presets"] if preset["memory"] is not None]
    losses = [row["loss"] for row in (*points, *presets, data)]
    floor = min((loss for loss in losses if loss > 0), default=1e-6)
    shown = lambda rows: {
        "x": [row["memory"] / scale for row in rows],
        "y": [max(row["loss"], floor) for row in rows],  # a log axis has no place for a loss of 0
        "hovertemplate": hover,
    }
    rate = lambda row: f"{format_rate(row['tokens_per_second'])} tokens/s"
    figure.add_scatter(
        **shown(points), mode="lines+markers", name="Pareto front", text=list(map(rate, points)),
        line={"color": COLOURS["recovered"]},
    )  # fmt: skip
    figure.add_scatter(
        **shown(presets), mode="markers", name="presets",
        text=[f"{plain(row['name'])}, {rate(row)}" for row in presets],
        marker={"symbol": "x", "size": 9, "color": COLOURS["original"]},
    )  # fmt: skip
    figure.add_scatter(
        **shown([data]), mode="markers", name="this plan", text=[f"this plan, {rate(data)}"],
        marker={"symbol": "star", "size": 16, "color": COLOURS["quantized"]},
    )  # fmt: skip
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "font": {"color": "#7a858f"}})
    ticks = log_ticks(floor, max(*losses, 1.01 * floor))
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_xaxes(nticks=6, ticksuffix=f" {unit}")
    return figure


def gains(percent: Data) -> go.Figure:
    """Draw by how many percent this plan and W4/W2-GateUp decode faster than uniform 4 bits, by context."""
    figure = blank(height=300)
    contexts = percent["contexts"]
    for name, colour in (("this plan", COLOURS["quantized"]), ("W4/W2-GateUp", COLOURS["recovered"])):
        figure.add_scatter(
            x=list(range(len(contexts))),
            y=percent[name],
            mode="lines+markers",
            name=name,
            line={"color": colour},
            hovertemplate=f"{name}: %{{y:.1f}} %<extra></extra>",
        )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "font": {"color": "#7a858f"}})
    ticks = [f"{context // 1024}k" if context else "0" for context in contexts]
    figure.update_xaxes(tickvals=list(range(len(contexts))), ticktext=ticks)
    figure.update_yaxes(ticksuffix=" %", nticks=6)
    return figure
