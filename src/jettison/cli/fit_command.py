"""The command ``jettison fit``, and the tables of plans and forecasts that other commands print too."""

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from jettison.cli import common
from jettison.cli.export_command import show_formats
from jettison.core.progress import duration

EXAMPLES = (
    "jettison fit scribe --memory 8MB --out runs/scribe",
    "jettison fit my-classifier --latency 0.7x --images photos --out runs/classifier",
    "jettison fit my-pipeline --speedup 2.5 --out runs/pipeline",
)
STAGES = ("original", "quantized", "recovered")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("fit", epilog=common.example(*EXAMPLES))(fit)


def fit(
    model: common.Model,
    out: common.Out,
    device: common.DeviceName = "this",
    tps: common.Tps = None,
    memory: common.Memory = None,
    latency: common.Latency = None,
    fps: common.Fps = None,
    speedup: common.Speedup = None,
    context: common.Context = 2048,
    runtime: common.RuntimeName = None,
    recovery: common.Recovery = True,
    losses: common.Losses = "auto",
    refine: common.Refine = 0,
    recipe: common.RecipeName = None,
    changes: common.Changes = None,
    texts: common.Texts = None,
    tasks: common.Tasks = None,
    items: common.Items = None,
    images: common.Images = None,
    count: common.Count = None,
    seed: common.Seed = 0,
    to: common.To = None,
    dry_run: common.DryRun = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Make a model fit a device and a budget: plan, compress, recover, evaluate, report."""
    from jettison.fitting import fit as run
    from jettison.pipeline.evaluation import TEXTS

    common.begin(quiet, json)
    result = run(
        model, out=out, device=device, tps=tps, memory=memory, latency=latency, fps=fps,
        speedup=speedup, context=context, runtime=runtime, recovery=recovery, losses=losses, refine=refine,
        recipe=recipe, changes=changes or [], texts=texts or TEXTS, tasks=tasks or [], items=items,
        images=images, count=count, seed=seed, to=to or (), dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        show_plan(result["plan"])
        show_forecast(result["forecast"])
    else:
        show_stages(result)
        show_tasks(result)
        if "exports" in result:
            common.out.print()
            show_formats(result["exports"])
        loaders = "jettison.load" if result.get("not_in_transformers") else "transformers and with jettison.load"
        folder, page = escape(str(out)), escape(str(out / "report.html"))
        common.out.print(
            f"\n[bold]{folder}[/bold] loads with {loaders}; "
            f"all measurements are in [bold]{page}[/bold]", soft_wrap=True,
        )  # fmt: skip
    common.finish(result, json)


def show_plan(planned: dict[str, Any]) -> None:
    """Print a recipe, its reasons, and the predicted speed and memory if there are any."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import format_rate

    recipe, predicted = planned["recipe"], planned["predicted"]
    common.out.print(f"recipe [bold]{escape(recipe['name'])}[/bold]: {escape(recipe.get('use', ''))}")
    for reason in recipe.get("why", []):
        common.out.print(f"  {reason}", markup=False)
    if "memory" not in predicted:
        return
    common.out.print(
        f"on {predicted['device']}: {format_rate(predicted['tokens_per_second'])} tokens/s, "
        f"{format_bytes(predicted['memory'])} at {predicted['context']} tokens of context", markup=False,
    )  # fmt: skip


def show_forecast(forecast: dict[str, Any]) -> None:
    """Print memory, disk and time of every step, then the warnings."""
    from jettison.core.bytesize import format_bytes

    rows = [
        [step["step"], format_bytes(step["memory"]), format_bytes(step["disk"]), duration(step["seconds"])]
        for step in forecast["steps"]
    ]
    common.table("step", "peak memory", "disk", "time", rows=rows)
    for warning in forecast["warnings"]:
        common.out.print(warning, style="bold", markup=False)


def show_stages(result: dict[str, Any]) -> None:
    """Print a row per stage (original, quantized, recovered): size and bits, then quality, KL and agreement on every
    text or image set."""
    from jettison.core.bytesize import format_bytes
    from jettison.formats.card import stage_words

    stages = [name for name in STAGES if name in result]
    words = stage_words(result.get("plan", {}).get("recipe", {}))
    texts, images = (list(result[stages[0]].get(kind, {})) for kind in ("texts", "images"))
    rows = []
    for stage in stages:
        size = result[stage]["size"]
        row = [words[stage], format_bytes(size["bytes"]), f"{size['bits_per_weight']:.2f}"]
        for text in texts:
            measured = result[stage]["texts"][text]
            row += [f"{measured['perplexity']:.2f}", f"{measured['kl']:.4f}", f"{measured['agreement']:.1%}"]
        for name in images:
            measured = result[stage]["images"][name]
            row += [f"{measured['accuracy']:.1%}", f"{measured['kl']:.4f}", f"{measured['agreement']:.1%}"]
        rows.append(row)
    columns = ["", "\nsize", "bits per\nweight"]
    for name in images:
        columns += [f"{Path(name).stem}\naccuracy", "\nKL", "same\nclass"]
    names = [{"books-evaluation": "books", "wikitext2": "WikiText-2"}.get(text, Path(text).stem) for text in texts]
    for short in names if len(set(names)) == len(names) else texts:
        columns += [f"{short}\nperplexity", "\nKL", "same\ntoken"]
    common.table(*columns, rows=rows)
    for step in ("depth", "program"):
        if figures := result.get(step):
            common.out.print(f"\n{figures['line']}", markup=False, soft_wrap=True)
    if "recovered" in result and words["quantized"] == "quantized":
        common.out.print("quantized: without the LoRA adapters; recovered: with them, and with their size", style="dim")


def show_tasks(result: dict[str, Any]) -> None:
    """Print the accuracy of every stage on every task, and the share of the lost accuracy that was recovered.

    The share is left out for a task whose loss is within its statistical error.
    """
    from jettison.formats.card import stage_words

    words = stage_words(result.get("plan", {}).get("recipe", {}))
    stages = [name for name in STAGES if result.get(name, {}).get("tasks")]
    if not stages:
        return
    shares = {share["task"]: share for share in result.get("tasks") or [] if share["counts"]}
    rows = []
    for task, first in result[stages[0]]["tasks"].items():
        scores = [result[stage]["tasks"][task] for stage in stages]
        row = [task, *(f"{score['accuracy']:.3f}" for score in scores)]
        error, guess, share = first["standard_error"], first["random"], shares.get(task)
        row += ["" if error is None else f"± {error:.3f}", "" if guess is None else f"{guess:.3f}", str(first["items"])]
        rows.append([*row, f"{100 * share['recovered']:.0f} ± {100 * share['recovered_error']:.0f} %" if share else ""])
    recovered = ["recovered"] if shares else []
    columns = [
        "task",
        *(words[stage] for stage in stages[:-1]),
        "recovered\nmodel" if stages[-1] == "recovered" else words[stages[-1]],
        "error",
        "guessing",
    ]
    common.out.print()
    common.table(*columns, "items", *recovered, rows=[row if shares else row[:-1] for row in rows])
