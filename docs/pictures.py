"""Draw pictures of the docs from results, as SVG. This needs no browser, and the same figures give the same bytes."""

from collections.abc import Mapping, Sequence
from html import escape

from jettison.reports.charts import COLOURS, RUN_COLOURS
from jettison.reports.xr_charts import DROPPED, LATE

ROW, BAR, LEFT, WIDTH, TITLE, FOOT = 22, 14, 64, 780, 30, 26
CELL = 20  # side of a cell of a gate map
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


def pareto(points: Sequence[Mapping]) -> str:
    """Draw loss against users, an inline SVG in the colours of the page. Points of one kind are joined.

    points: name, kind, ratio (users against a device that offloads nothing), loss.
    """
    width, height, left, top, side = 460, 260, 60, 20, 210
    most, highest = max(point["ratio"] for point in points) * 1.1, max(point["loss"] for point in points) * 1.1
    x_of, y_of = lambda ratio: left + width * ratio / most, lambda loss: top + height * (1 - loss / highest)
    parts = [f'<path d="M{left} {top}v{height}h{width}" fill="none"/>']
    for number in range(5):
        x, y = left + width * (number + 1) / 5, top + height * number / 5
        parts.append(
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{most * (number + 1) / 5:.2f}x</text>'
        )
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{highest * (1 - number / 5):.3g}</text>')
    parts.append(f'<text x="{left - 8}" y="{top - 8}" text-anchor="end">loss</text>')
    parts.append(f'<text x="{left + width}" y="{top + height + 36}" text-anchor="end">users</text>')
    for number, kind in enumerate(dict.fromkeys(point["kind"] for point in points)):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        own = sorted((point for point in points if point["kind"] == kind), key=lambda point: point["ratio"])
        places = [(x_of(point["ratio"]), y_of(point["loss"])) for point in own]
        if kind != "on the device":
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for point, (x, y) in zip(own, places, strict=True):
            title = f"<title>{escape(point['name'])}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="none" fill="{colour}">{title}</circle>')
            short = escape(point["name"].split(",")[0])
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" font-size="10">{short}</text>')
        row = top + 18 * number
        parts.append(f'<circle cx="{left + width + 40}" cy="{row}" r="4" stroke="none" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 52}" y="{row + 4}">{escape(kind)}</text>')
    box = f'viewBox="0 0 {left + width + side} {top + height + 44}"'
    style = 'font-family="sans-serif" font-size="12" stroke="currentColor" stroke-width="1"'
    body = "".join(parts).replace("<text ", '<text stroke="none" fill="currentColor" ')
    return f'<svg {box} {style} role="img">{body}</svg>'
