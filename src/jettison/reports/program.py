"""The page's section about a program: which blocks are computed when, quality against cost, and how it was found."""

from pathlib import Path
from typing import Any

from jettison.core.errors import JettisonError
from jettison.core.numbers import figures
from jettison.core.progress import say
from jettison.domains.diffusion.program import NAME, read_program
from jettison.domains.diffusion.search import JOURNAL as SEARCH_JOURNAL
from jettison.formats.card import program_words
from jettison.formats.program_schema import SearchStep, Timed
from jettison.pipeline.first_step import JOURNAL
from jettison.pipeline.program import FOLDER, SEARCH
from jettison.reports import charts, program_charts
from jettison.reports.run import Run, read_entries, read_run, valid_entries

WHAT = "how the program was found"


def read_program_run(run: Run) -> dict[str, Any] | None:
    """Return what a run records of its program; None for a run without one.

    The section ``program`` of jettison.json, and: timed, the last measurement of the program (see ``Timed``; None if it
    was not timed), and losses, of every step of the search ([] without one). Damaged entries are left out.
    """
    section = run.manifest.get("program")
    if not section:
        return None
    timed = valid_entries(read_entries(run.folder / FOLDER / JOURNAL, WHAT), "timed", Timed)
    steps = valid_entries(read_entries(run.folder / FOLDER / SEARCH / SEARCH_JOURNAL, WHAT), "loss", SearchStep)
    losses = {entry.step: entry.loss for entry in steps}  # a step that a killed run did twice counts once
    return section | {
        "timed": max(timed, key=lambda entry: entry.timed).model_dump() if timed else None,
        "losses": [losses[step] for step in sorted(losses)],
    }


def program_figures(folder: str | Path) -> dict[str, Any] | None:
    """Return the figures of a run's program, and a ``line`` of them in words; None for a run without one."""
    record = read_program_run(read_run(folder))
    if record is None:
        return None
    named = ("method", "sampler", "steps", "guidance", "flops", "speedup", "computed", "blocks", "timed", "curve")
    return {name: record.get(name) for name in named} | {"line": f"program: {_line(record)}"}


def _line(record: dict[str, Any]) -> str:
    line = program_words(record)
    if timed := record["timed"]:
        times = timed["milliseconds"]
        line += (
            f"; measured on the machine of the run: {timed['speedup']:.2f} times ({timed['low']:.2f} to "
            f"{timed['high']:.2f}), {figures(times['full'])} → {figures(times['program'])} ms"
        )
    return line if timed else f"{line}; its time was not measured"


def program_headline(run: Run) -> str:
    """Return how many times as fast a run is, for the headline; "" without a program."""
    record = read_program_run(run)
    if not record:
        return ""
    timed = record["timed"]
    return f"{timed['speedup']:.2f} times as fast" if timed else f"{record['speedup']:.2f} times as fast, as counted"


def program_tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the key figures: each as the figure, its meaning, and what to compare it with."""
    record = read_program_run(run)
    if not record:
        return []
    counted = f"{record['speedup']:.2f}× as counted"
    tiles = [(f"{record['computed']} of {record['blocks']}", "blocks computed", f"by {record['method']}")]
    if record["timed"]:
        return [(f"{record['timed']['speedup']:.2f}×", "as fast, measured", counted), *tiles]
    return [(f"{record['speedup']:.2f}×", "as fast, as counted", "the time was not measured"), *tiles]


def program_section(run: Run) -> dict[str, Any] | None:
    """Return the section about the program; None for a run without one."""
    record = read_program_run(run)
    if record is None:
        return None
    curve = record.get("curve") or []
    points = {method: [point for point in curve if point["method"] == method] for method in _methods(curve)}
    shown = [(method, program_charts.method_colour(number)) for number, method in enumerate(points)]
    chart = program_charts.quality(points, (record["method"], record["flops"])) if points else None
    return {
        "line": _line(record),
        "budget": _budget(record),
        "record": record,
        "map": _gate_map(run),
        "quality": charts.embed(chart, "program-quality") if chart else None,
        "methods": shown,
        "rows": [(method, point) for method, own in points.items() for point in own],
        "seeds": max((len(point.get("samples") or [0]) for point in curve), default=0),
        "losses": charts.embed(charts.curve(record["losses"]), "program-loss") if record["losses"] else None,
        "smooth": charts.window(len(record["losses"])),
    }


def _methods(curve: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(point["method"] for point in curve))


def _budget(record: dict[str, Any]) -> str:
    """Return in words whether the speedup that was asked for is reached; "" if none was."""
    asked, timed = (record.get("asked") or {}).get("speedup"), record["timed"]
    if not asked or not timed:
        return ""
    word = "met" if timed["speedup"] >= asked else "missed"
    return f"Asked for: {asked:g} times as fast. Measured: {timed['speedup']:.2f}, so the budget is {word}."


def _gate_map(run: Run):
    """Return the map of gates; None, with a note, if the program cannot be read."""
    try:
        program = read_program(run.folder / NAME)
    except JettisonError as error:
        say(f"note: the report leaves out the map of the program: {error}")
        return None
    return charts.embed(program_charts.gate_map(program.gates, program.units), "program-map")
