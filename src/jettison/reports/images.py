"""The page's parts about an image classifier: accuracy, distance from the original, and the images that changed."""

from typing import Any

from jettison.core.numbers import figures
from jettison.reports import charts
from jettison.reports.depth import depth_tiles, read_depth
from jettison.reports.run import Run

NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """Format a share as a percentage with one digit."""
    return f"{100 * share:.1f}{NO_BREAK}%"


def image_sets(run: Run) -> list[str]:
    """Return the image sets that every measured stage has in common."""
    sets = [stage.get("images") or {} for stage in run.results.values()]
    return [name for name in sets[0] if all(name in other for other in sets)] if sets else []


def accuracy_line(run: Run) -> str:
    """Return the accuracy before and after, for the headline; '' if it was not measured."""
    if not (names := image_sets(run)) or run.last is None or "original" not in run.results:
        return ""
    before, after = (run.results[stage]["images"][names[0]]["accuracy"] for stage in ("original", run.last))
    return f", accuracy {percent(before)} → {percent(after)}"


def image_tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the key figures: each as the figure, its meaning, and what to compare it with."""
    tiles = []
    for name in image_sets(run)[:1]:
        before, after = (run.results[stage]["images"][name] for stage in ("original", run.last))
        tiles.append((percent(after["accuracy"]), "accuracy", f"{percent(before['accuracy'])} before"))
        if "kl" in after:
            tiles.append((f"{after['kl']:.3f}", "nats from the original", f"{after['images']:,} images"))
            tiles.append((percent(after["agreement"]), "same class", "as the original"))
    depth = read_depth(run)
    times = {} if depth and depth["milliseconds"] else latencies(run)
    if depth:
        tiles += depth_tiles(depth)
    if "original" in times and run.last in times:
        latency = times[run.last]
        tiles.append((f"{figures(latency)} ms", "for one image", f"{figures(times['original'])} ms before"))
    return tiles


def latencies(run: Run) -> dict[str, float]:
    """Return stage -> milliseconds for one image, for the stages that were timed."""
    return {
        stage: run.speeds[stage]["latency_ms"] for stage in run.results if run.speeds.get(stage, {}).get("latency_ms")
    }


def image_quality(run: Run) -> dict[str, Any] | None:
    """Return the section about quality on images; None if no images were measured.

    sets: name and the figures of every stage.
    chart: the accuracies.
    pictures: the images that changed most in the last stage; looked_at, differ: how many images were compared, and how
        many of them have another class now.
    """
    names = image_sets(run)
    if not names:
        return None
    sets = [
        {"name": name, "rows": [(stage, result["images"][name]) for stage, result in run.results.items()]}
        for name in names
    ]
    values = {stage: 100 * result["images"][names[0]]["accuracy"] for stage, result in run.results.items()}
    bars = charts.stage_bars(values, [f"{value:.1f} %" for value in values.values()])
    last = run.results[run.last] if run.last else {}
    return {
        "sets": sets,
        "chart": charts.embed(bars, "accuracy-chart"),
        "pictures": last.get("pictures") or [],
        "differ": last.get("differ"),
        "looked_at": last.get("looked_at"),
        "stage": run.last,
    }


def latency_chart(run: Run) -> tuple[str, Any] | None:
    """Return the caption and the chart of the latencies; None if none were measured."""
    times = latencies(run)
    if not times:
        return None
    spread = lambda stage: run.speeds[stage].get("latency_samples") or [times[stage]]
    captions = [
        f"{figures(value)} ({figures(min(spread(stage)))} to {figures(max(spread(stage)))})"
        for stage, value in times.items()
    ]
    caption = f"Milliseconds for one image, measured on {run.speed.get('machine') or 'an unnamed machine'}; the median"
    return caption + ", and the range", charts.embed(charts.stage_bars(times, captions), "latency-chart")
