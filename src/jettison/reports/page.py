"""The report of one run: its sections and charts, and the page that holds them."""

from pathlib import Path
from typing import Any

from jettison.core.files import write_text
from jettison.core.numbers import figures, format_rate
from jettison.reports import charts, sections
from jettison.reports.depth import depth_section
from jettison.reports.error_map import read_error_map
from jettison.reports.exhibits import exhibits, score_tables
from jettison.reports.images import image_quality, latency_chart
from jettison.reports.plan_page import plan_charts
from jettison.reports.program import program_section
from jettison.reports.render import render
from jettison.reports.run import Run, read_run

NAME = "report.html"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in ``folder`` as one self-contained HTML file, and return its path.

    out: the file; None means ``report.html`` in the folder.
    The same run gives the same bytes. The page leaves out what was not measured.
    Raises UsageError if the folder is not a finished output of Jettison.
    """
    run = read_run(folder)
    path = run.folder / NAME if out is None else Path(out)
    write_text(path, render("report.html.jinja", run=run, **_sections(run), **_charts(run)))
    return path


def _sections(run: Run) -> dict[str, Any]:
    return {
        "headline": sections.headline(run),
        "lead": sections.lead(run),
        "tiles": sections.tiles(run),
        "asked": sections.asked(run),
        "recipe": sections.recipe(run),
        "quality": sections.quality(run),
        "images": image_quality(run),
        "depth": depth_section(run),
        "program": program_section(run),
        "score_tables": score_tables(run),
        "exhibits": exhibits(run),
        "tasks": sections.tasks(run),
        "samples": sections.samples(run),
        "drafts": sections.drafts(run),
        "check": sections.check(run),
        "reproduce": sections.reproduce(run),
        "plan": run.manifest.get("plan"),
        "plan_charts": plan_charts(run.manifest.get("plan")),
        "smooth": charts.window(len(run.losses)),
    }


def _charts(run: Run) -> dict[str, Any]:
    """Return the charts by their names in the template; None for a chart whose data are missing."""
    errors = read_error_map(run)
    return {
        "size_chart": _size(run),
        "speed_charts": _speed(run),
        "perplexity_charts": _perplexities(run),
        "distance_chart": _distances(run),
        "task_chart": _tasks(run),
        "errors": errors,
        "bits_in_cells": bool(errors) and errors.blocks <= charts.FEW,
        "error_chart": charts.embed(charts.error_map(errors), "errors-chart") if errors else None,
        "recovery_loss": run.loss_name,
        "recovery_chart": charts.embed(charts.curve(run.losses), "recovery-chart") if run.losses else None,
    }


def _size(run: Run):
    sizes = {stage: result["size"] for stage, result in run.results.items() if "size" in result}
    if not sizes:
        return None
    captions = [f"{sections.size(size['bytes'])}, {size['bits_per_weight']:.2f} bits" for size in sizes.values()]
    figure = charts.stage_bars({stage: size["bytes"] for stage, size in sizes.items()}, captions)
    return charts.embed(figure, "size-chart")


def _speed(run: Run) -> list[tuple[str, Any]]:
    """Return captions and charts of the speeds: those that the roofline predicted, and those that were measured."""
    speeds = []
    request = run.manifest.get("request") or {}
    predicted = sections.predicted(run, "tokens_per_second")
    if predicted:
        rates = ({"asked": request["tps"]} if request.get("tps") else {}) | predicted
        figure = charts.stage_bars(rates, [format_rate(rate) for rate in rates.values()])
        caption = f"Decoding, tokens/s, predicted for {run.device} by the roofline"
        speeds.append((caption, charts.embed(figure, "speed-predicted")))
    for kind, title in (("decode", "Decoding"), ("prefill", "Reading the prompt")):
        rates = run.measured_speed(kind)
        if rates:
            samples = {stage: run.speed_samples(kind, stage) for stage in rates}
            figure = charts.stage_bars(rates, [_with_spread(rate, samples[stage]) for stage, rate in rates.items()])
            caption = f"{title}, tokens/s, measured on {run.speed.get('machine') or 'an unnamed machine'}"
            if any(len(of) > 1 for of in samples.values()):
                caption += "; the median of several samples, and the slowest and fastest of them"
            speeds.append((caption, charts.embed(figure, f"speed-{kind}")))
    return speeds + ([latency] if (latency := latency_chart(run)) else [])


def _with_spread(rate: float, samples: list[float]) -> str:
    if len(samples) == 1:
        return f"{format_rate(rate)} (one sample)"
    return f"{format_rate(rate)} ({figures(min(samples))} to {figures(max(samples))})"


def _perplexities(run: Run) -> list[tuple[str, Any]]:
    """Return (text, chart of the perplexities of all stages) for every text."""
    bars = []
    for number, text in enumerate(run.texts):
        values = {stage: result["texts"][text]["perplexity"] for stage, result in run.results.items()}
        figure = charts.stage_bars(values, [f"{value:.2f}" for value in values.values()])
        bars.append((text, charts.embed(figure, f"perplexity-{number}")))
    return bars


def _distances(run: Run):
    stages = {}
    for stage in list(run.words.values())[1:]:  # without the original, whose distance from itself is 0
        if stage in run.results:
            measured = run.results[stage].get("texts") or {}
            stages[stage] = [measured[text]["kl"] for text in run.texts if "kl" in measured[text]]
    stages = {stage: values for stage, values in stages.items() if values and len(values) == len(run.texts)}
    return charts.embed(charts.distances(stages, run.texts), "distance-chart") if stages else None


def _tasks(run: Run):
    stages = {stage: result["tasks"] for stage, result in run.results.items() if result.get("tasks")}
    return charts.embed(charts.task_accuracies(stages), "task-chart") if stages else None
