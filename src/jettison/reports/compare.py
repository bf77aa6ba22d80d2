"""The comparison of several runs: rows of figures, and an HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError
from jettison.core.files import write_text
from jettison.reports import charts
from jettison.reports.images import image_sets, latencies
from jettison.reports.render import render
from jettison.reports.run import Run, read_run


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Compare finished runs on the texts or images that all of them were measured on, and write the page ``out``.

    Returns ``texts``, ``images``, ``rows`` (one per folder, in order) and ``notes`` (what limits the comparison). A row
    has:

    - name, model, recipe, and stage: the last stage that was measured, which is what the folder holds;
    - bytes, bits_per_weight, and decode_tokens_per_second (None if not measured);
    - texts: per text perplexity, kl, agreement, and recovered, the share of the lost log-perplexity that recovery
      brought back (None if there was no recovery);
    - images: per set accuracy, kl and agreement; latency_ms, milliseconds for one image (None if not measured).

    Raises UsageError for fewer than two folders, for a folder that was not measured, and if the runs have neither a
    text nor images in common.
    """
    if len(folders) < 2:
        raise UsageError(f"a comparison needs at least two folders; {len(folders)} given")
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.last is None or "original" not in run.results:
            raise UsageError(f"{run.folder} has no measured result yet: continue it with `jettison fit`")
    texts = [text for text in runs[0].texts if all(text in run.texts for run in runs)]
    images = [name for name in image_sets(runs[0]) if all(name in image_sets(run) for run in runs)]
    if not texts and not images:
        measured = "; ".join(f"{run.folder}: {', '.join([*run.texts, *image_sets(run)]) or 'none'}" for run in runs)
        raise UsageError(f"the runs have no text in common, so they cannot be compared: {measured}")
    result = {
        "texts": texts,
        "images": images,
        "rows": [_row(run, name, texts, images) for run, name in zip(runs, _names(runs), strict=True)],
        "notes": _notes(runs, _names(runs), texts),
    }
    losses = {number: run.losses for number, run in enumerate(runs, 1) if run.losses}
    loss_names = sorted({run.loss_name for run in runs if run.losses})
    page = render(
        "compare.html.jinja",
        **result,
        recovers={text: any(row["texts"][text]["recovered"] is not None for row in result["rows"]) for text in texts},
        speeds=any(row["decode_tokens_per_second"] for row in result["rows"]),
        reference=_same_original(runs),
        scatters=[(text, _scatter(runs, text, number)) for number, text in enumerate(texts)],
        pictured=[(name, _pictured(runs, name, number)) for number, name in enumerate(images)],
        curves=charts.embed(charts.curves(losses), "recovery-chart") if losses else None,
        curve_numbers=list(losses),
        curves_show="; or ".join(loss_names),
    )
    write_text(Path(out), page)
    return result


def _row(run: Run, name: str, texts: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
    stage = run.results[run.last]
    return {
        "name": name,
        "model": run.name,
        "recipe": run.manifest["recipe"].get("name", "custom"),
        "stage": run.last,
        "bytes": stage["size"]["bytes"],
        "bits_per_weight": stage["size"]["bits_per_weight"],
        "decode_tokens_per_second": run.measured_speed("decode").get(run.last),
        "texts": {
            text: {
                "perplexity": stage["texts"][text]["perplexity"],
                "kl": stage["texts"][text].get("kl"),
                "agreement": stage["texts"][text].get("agreement"),
                "recovered": run.share(text),
            }
            for text in texts
        },
        "images": {
            name: {score: stage["images"][name].get(score) for score in ("accuracy", "kl", "agreement")}
            for name in images
        },
        "latency_ms": latencies(run).get(run.last),
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the folders; whole paths if two folders have the same name."""
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _notes(runs: Sequence[Run], names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return what limits the comparison, a sentence each."""
    notes = []
    if not _same_original(runs):
        originals = ", ".join(dict.fromkeys(run.name for run in runs))
        notes.append(f"Different originals ({originals}): perplexity compares only where they share a tokenizer.")
    for text in texts:
        tokens = {run.results[run.last]["texts"][text].get("tokens") for run in runs}
        if len(tokens) > 1:
            notes.append(f"{text} was measured on different numbers of tokens.")
    machines = {run.speed.get("machine") for run in runs if run.measured_speed("decode")}
    if len(machines) > 1:
        notes.append(f"Speeds are from different machines: {', '.join(sorted(map(str, machines)))}.")
    for run, name in zip(runs, names, strict=True):
        if run.last in run.measured_speed("decode") and len(run.speed_samples("decode", run.last)) == 1:
            notes.append(f"The speed of {name} is one sample.")
        better = [text for text in texts if (run.share(text) or 0.0) > 1]
        if better:
            notes.append(f"{name} recovers more than 100 %: on {', '.join(better)} it is better than its original.")
    return notes


def _same_original(runs: Sequence[Run]) -> bool:
    """Return whether all runs were made from one model."""
    originals = [run.manifest["teacher"] for run in runs]
    return len({teacher.get("fingerprint", teacher["name"]) for teacher in originals}) == 1


def _pictured(runs: Sequence[Run], name: str, number: int):
    """Return the chart of size against accuracy on images."""
    stages = {index: run.results[run.last] for index, run in enumerate(runs, 1)}
    points = {
        index: (stage["size"]["bytes"], 100 * stage["images"][name]["accuracy"]) for index, stage in stages.items()
    }
    own = 100 * runs[0].results["original"]["images"][name]["accuracy"] if _same_original(runs) else None
    return charts.embed(charts.scatter(points, own, "accuracy"), f"pictured-{number}")


def _scatter(runs: Sequence[Run], text: str, number: int):
    points = {}  # number of the run -> (bytes, perplexity)
    for index, run in enumerate(runs, 1):
        stage = run.results[run.last]
        points[index] = (stage["size"]["bytes"], stage["texts"][text]["perplexity"])
    reference = None  # perplexity of the original
    if _same_original(runs):
        reference = runs[0].results["original"]["texts"][text]["perplexity"]
    return charts.embed(charts.scatter(points, reference), f"scatter-{number}")
