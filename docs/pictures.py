"""Draw pictures of the docs from results, as SVG. This needs no browser, and the same figures give the same bytes."""

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

from jettison.reports.charts import COLOURS, RUN_COLOURS
from jettison.reports.xr_charts import DROPPED, LATE

ROW, BAR, LEFT, WIDTH, TITLE, FOOT = 22, 14, 64, 780, 30, 26
CELL = 20  # side of a cell of a gate map
LETTER = 5.6  # width of a letter of a name in a scatter plot
WINDOW = 6  # height of the bar from arrival to deadline


def timelines(runs: Mapping[str, Sequence], tasks: Sequence[str], units: int, span_ms: float) -> str:
    """Draw the first ``span_ms`` of runs, one below the other, as in the Gantt charts of ``jettison xr``.

    On top are the units, in the colours of the tasks that ran there. Below is each task: from arrival to deadline
    (pale, a stroke at the deadline), when it ran (full colour, outlined red if late), and what was dropped (crosses).
    runs: title -> frames: task, arrival, deadline, status, spans [unit, start, end], in ms.
    """
    rows = [*(f"unit {unit}" for unit in range(units)), *tasks]
    panel = TITLE + ROW * len(rows) + FOOT
    parts = []
    for number, (title, frames) in enumerate(runs.items()):
        parts.append(f'<g transform="translate(0 {number * panel})">')
        parts.append(f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>')
        parts += _rows(frames, rows, units, span_ms)
        parts.append("</g>")
    size = f"{LEFT + WIDTH + 26} {panel * len(runs)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _rows(frames: Sequence, rows: Sequence[str], units: int, span_ms: float) -> list[str]:
    middle_of = {name: TITLE + ROW * (place + 0.5) for place, name in enumerate(rows)}
    colours = dict(zip(rows[units:], RUN_COLOURS, strict=False))
    at = lambda ms: LEFT + WIDTH * min(max(ms, 0.0), span_ms) / span_ms

    def bar(start: float, end: float, row: str, height: float, style: str) -> str:
        x, y = at(start), middle_of[row] - height / 2
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{at(end) - x:.1f}" height="{height}" {style}/>'

    pale, full, strokes = [], [], []
    for task, arrival, deadline, status, spans in frames:
        pale.append(bar(arrival, deadline, task, WINDOW, f'fill="{colours[task]}" opacity="0.25"'))
        for unit, start, end in spans:
            late = f' stroke="{LATE}" stroke-width="1.5"' if end > deadline else ""
            full += [
                bar(start, end, row, BAR, f'fill="{colours[task]}"{late}')
                for row in (f"unit {unit}", task)
                if start < span_ms
            ]
        if deadline <= span_ms:
            x, y = at(deadline), middle_of[task]
            cross = f'M{x - 3:.1f} {y - 3}l6 6m-6 0l6 -6" stroke="{DROPPED}" stroke-width="2'
            stroke = f'M{x:.1f} {y - 8}v16" stroke="{COLOURS["original"]}" stroke-width="1'
            strokes.append(f'<path d="{cross if status == "dropped" else stroke}" fill="none"/>')
    bottom = TITLE + ROW * len(rows)
    ticks = [
        f'<text x="{at(ms):.1f}" y="{bottom + 16}" text-anchor="middle">{ms} ms</text>'
        for ms in range(0, int(span_ms) + 1, 50)
    ]
    names = [f'<text x="{LEFT - 8}" y="{middle_of[row] + 4}" text-anchor="end">{escape(row)}</text>' for row in rows]
    return [*names, *pale, *full, *strokes, *ticks]


def gate_map(programs: Mapping[str, Sequence[str]]) -> str:
    """Draw which block is computed at which step: a row for every block, a column for every step.

    programs: ratio -> a text for every step, with 1 for every block that is computed and 0 for every other one. The
        more of the programs compute a block at a step, the darker is its cell.
    """
    gates = [list(zip(*rows, strict=True)) for rows in programs.values()]  # (blocks, steps) of every program
    blocks, steps = len(gates[0]), len(gates[0][0])
    parts = []
    for block in range(blocks):
        y = TITLE + CELL * (blocks - 1 - block)  # the first block at the bottom, where the image enters
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">block {block}</text>')
        for step in range(steps):
            share = sum(rows[block][step] == "1" for rows in gates) / len(gates)
            parts.append(
                f'<rect x="{LEFT + CELL * step}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{COLOURS["original"]}" fill-opacity="{share:.2f}" stroke="#ccc"/>'
            )
    for step in range(0, steps, 5):
        parts.append(f'<text x="{LEFT + CELL * (step + 0.5):.0f}" y="{TITLE - 8}" text-anchor="middle">{step}</text>')
    box = f'viewBox="0 0 {LEFT + CELL * steps + 26} {TITLE + CELL * blocks + 8}"'
    style = 'font-family="sans-serif" font-size="12" fill="currentColor" role="img"'
    return f"<svg {box} {style}>" + "".join(parts) + "</svg>"


def scatter(points: Sequence[Mapping], across: str, up: str, joined: Collection[str]) -> str:
    """Draw points by two numbers, an inline SVG in the colours of the page.

    points: name, kind, x, y. A kind has a colour. A name that finds no free place is shown where the pointer rests.
    across, up: how a number of an axis is written, such as ``{:g} ms``. joined: kinds whose points are joined.
    """
    width, height, left, top, side = 560, 260, 70, 20, 200
    columns, rows = (_ticks([point[axis] for point in points]) for axis in "xy")
    x_of = lambda x: left + width * (x - columns[0]) / (columns[-1] - columns[0])
    y_of = lambda y: top + height * (rows[-1] - y) / (rows[-1] - rows[0])
    parts = [f'<path d="M{left} {top}v{height}h{width}" fill="none"/>']
    for x in columns:
        words = escape(across.format(x))
        parts.append(f'<text x="{x_of(x):.1f}" y="{top + height + 18}" text-anchor="middle">{words}</text>')
    for y in rows:
        at = y_of(y)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{at:.1f}" y2="{at:.1f}" opacity="0.15"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(up.format(y))}</text>')
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    colours = {kind: RUN_COLOURS[number % len(RUN_COLOURS)] for number, kind in enumerate(kinds)}
    for number, kind in enumerate(kinds):
        own = sorted((point for point in points if point["kind"] == kind), key=lambda point: point["x"])
        if kind in joined:
            line = "L".join(f"{x_of(point['x']):.1f} {y_of(point['y']):.1f}" for point in own)
            parts.append(f'<path d="M{line}" fill="none" stroke="{colours[kind]}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{left + width + 40}" cy="{top + 18 * number}" r="4" {_full(colours[kind])}/>')
        parts.append(f'<text x="{left + width + 52}" y="{top + 18 * number + 4}">{escape(kind)}</text>')
    places = [(x_of(point["x"]), y_of(point["y"])) for point in points]
    margin = (-math.inf, -math.inf, left, math.inf)
    taken = [margin, *((x - 4, y - 4, x + 4, y + 4) for x, y in places)]
    for point, (x, y) in zip(points, places, strict=True):
        title = f"<title>{escape(point['name'])}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {_full(colours[point["kind"]])}>{title}</circle>')
        parts += _label(point["name"], x, y, taken)
    box = f'viewBox="0 0 {left + width + side} {top + height + 30}"'
    style = 'font-family="sans-serif" font-size="12" stroke="currentColor" stroke-width="1"'
    body = "".join(parts).replace("<text ", '<text stroke="none" fill="currentColor" ')
    return f'<svg {box} {style} role="img">{body}</svg>'


def _full(colour: str) -> str:
    return f'stroke="none" fill="{colour}"'


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> list[str]:
    """Return the text of a name beside its point, in the first free place; nothing if none is free.

    taken: boxes of what is drawn already: left, top, right, bottom. That of the text is added.
    """
    long = LETTER * len(name)
    for down in (-6, 4, 14, -16, 24):
        for start in (x + 7, x - 7 - long):
            box = (start, y + down - 9, start + long, y + down + 2)
            if all(box[2] < a or box[0] > c or box[3] < b or box[1] > d for a, b, c, d in taken):
                taken.append(box)
                return [f'<text x="{start:.1f}" y="{y + down:.1f}" font-size="10">{escape(name)}</text>']
    return []


def _ticks(numbers: Sequence[float]) -> list[float]:
    """Return round numbers, evenly spaced, from below the least number to above the greatest, at most 9."""
    least, most = min(numbers), max(numbers)
    power = 10.0 ** math.floor(math.log10(max(most - least, 1e-9 * max(abs(most), 1.0))))
    for step in (factor * power for factor in (0.1, 0.2, 0.5, 1, 2, 5, 10)):
        first, last = math.floor(least / step - 0.2), math.ceil(most / step + 0.2)
        if last - first <= 8:
            return [round(number * step, 12) for number in range(first, last + 1)]
    raise AssertionError("ten of the power cover the range")
