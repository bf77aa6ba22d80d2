"""Draws the learning curves of a training as an SVG picture: its loss and its score over the steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, GAP = 760, 190, 64, 40  # of a panel in pixels; GAP: above and below it
POINTS = 400  # of a curve
LOSS, SCORE, GRID = "#2a6fdb", "#d9482b", "#dddddd"
Point = tuple[float, float]  # step, value


def read_curves(entries: Iterable[Mapping[str, Any]]) -> tuple[list[Point], list[Point], list[tuple[str, int]]]:
    """Return losses and scores as points, and name and first step of every stage.

    entries: of the journal of a training. Steps count on over the stages. What a killed run did again counts once.
    """
    losses: dict[int, float] = {}
    scores: dict[int, float] = {}
    stages: dict[str, int] = {}
    last = -1
    for entry in entries:
        if "stage" not in entry:
            continue
        first = stages.setdefault(entry["stage"], last + 1)
        if "step" in entry:
            last = first + entry["step"]
            losses[last] = entry["loss"]
        elif "score" in entry:  # a step is judged before it is recorded
            scores[last + 1] = entry["score"]
    return sorted(losses.items()), sorted(scores.items()), list(stages.items())


def training_svg(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return the learning curves as SVG: the loss (a running mean, on a log scale) above the score on ``val``."""
    losses, scores, stages = read_curves(entries)
    steps = max([step for step, _ in [*losses, *scores]], default=0) or 1
    smooth = [(step, math.log10(value)) for step, value in _running(losses) if value > 0]
    tall = 2 * HEIGHT + 3 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {tall}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for place, (name, points, colour, log) in enumerate(
        [("loss", smooth, LOSS, True), ("score on val", scores, SCORE, False)]
    ):
        top = GAP + place * (HEIGHT + GAP)
        parts += _panel(name, points, colour, log, top, steps, stages)
    parts.append(f'<text x="{LEFT + WIDTH}" y="{tall - GAP / 2}" text-anchor="end">{steps:,} steps</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(
    name: str, points: Sequence[Point], colour: str, log: bool, top: int, steps: float, stages: Sequence
) -> list[str]:
    """Return the elements of one curve with its axis; its values are logarithms if ``log``."""
    values = [value for _, value in points] or [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    across = lambda step: LEFT + WIDTH * step / steps
    down = lambda value: top + HEIGHT * (high - value) / (high - low)
    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(name)}</text>']
    for tick in range(5):
        value = low + (high - low) * tick / 4
        y, shown = down(value), f"{10**value if log else value:.3g}"
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    for stage, first in stages if len(stages) > 1 else ():
        x = across(first)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + HEIGHT}" stroke="#999999"/>')
        parts.append(f'<text x="{x + 4:.1f}" y="{top + 12}" fill="#555555">{escape(stage)}</text>')
    line = " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in _thin(points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    if not log:
        parts += [f'<circle cx="{across(s):.1f}" cy="{down(v):.1f}" r="3" fill="{colour}"/>' for s, v in points]
    return parts


def _running(points: Sequence[Point]) -> list[Point]:
    """Return for every point the mean of the last values, a fiftieth of all."""
    count = max(1, len(points) // 50)
    total, means = 0.0, []
    for place, (step, value) in enumerate(points):
        total += value - (points[place - count][1] if place >= count else 0.0)
        means.append((step, total / min(place + 1, count)))
    return means


def _thin(points: Sequence[Point]) -> list[Point]:
    """Return at most ``POINTS`` points, evenly spread, with the first and the last."""
    if len(points) <= POINTS:
        return list(points)
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]
