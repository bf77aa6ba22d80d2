"""jettison fit"""

from pathlib import Path
from typing import Any

import typer

from jettison.cli import common
from jettison.progress import duration


def register(app: typer.Typer) -> None:
    app.command("fit", epilog=common.example("jettison fit scribe --memory 8MB --out runs/scribe"))(fit)


def fit(
    model: common.Model,
    out: common.Out,
    device: common.DeviceName = "this",
    tps: common.Tps = None,
    memory: common.Memory = None,
    context: common.Context = 2048,
    engine: common.EngineName = None,
    recovery: common.Recovery = True,
    losses: common.Losses = "auto",
    refine: common.Refine = 0,
    recipe: common.RecipeName = None,
    changes: common.Changes = None,
    texts: common.Texts = None,
    tasks: common.Tasks = None,
    items: common.Items = None,
    seed: common.Seed = 0,
    dry_run: common.DryRun = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Make a model fit a device and a budget: plan, compress, recover, evaluate, report."""
    from jettison.fit import TEXTS
    from jettison.fit import fit as run

    common.begin(quiet, json)
    result = run(
        model, out=out, device=device, tps=tps, memory=memory, context=context, engine=engine,
        recovery=recovery, losses=losses, refine=refine, recipe=recipe,
        changes=changes or [], texts=texts or TEXTS, tasks=tasks or [], items=items, seed=seed, dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        show_plan(result["plan"])
        show_forecast(result["forecast"])
    else:
        show_stages(result)
        common.out.print(
            f"\n[bold]{out}[/bold] loads with transformers and with jettison.load; "
            f"all that was measured is in [bold]{out / 'report.html'}[/bold]", soft_wrap=True,
        )  # fmt: skip
    common.finish(result, json)


def show_plan(planned: dict[str, Any]) -> None:
    from jettison.units import format_bytes, format_rate

    recipe, predicted = planned["recipe"], planned["predicted"]
    common.out.print(f"recipe [bold]{recipe['name']}[/bold]: {recipe.get('use', '')}")
    for reason in recipe.get("why", []):
        common.out.print(f"  {reason}", markup=False)
    common.out.print(
        f"on {predicted['device']}: {format_rate(predicted['tokens_per_second'])} tokens/s, "
        f"{format_bytes(predicted['memory'])} at {predicted['context']} tokens of context"
    )


def show_forecast(forecast: dict[str, Any]) -> None:
    from jettison.units import format_bytes

    rows = [
        [step["step"], format_bytes(step["memory"]), format_bytes(step["disk"]), duration(step["seconds"])]
        for step in forecast["steps"]
    ]
    common.table("step", "peak memory", "disk", "time", rows=rows)
    for warning in forecast["warnings"]:
        common.out.print(f"[bold]{warning}[/bold]")


def show_stages(result: dict[str, Any]) -> None:
    """Original, quantized, recovered: size, bits, and on each text perplexity, distance, agreement."""
    from jettison.units import format_bytes

    stages = [name for name in ("original", "quantized", "recovered") if name in result]
    texts = list(result[stages[0]]["texts"])
    rows = []
    for stage in stages:
        size = result[stage]["size"]
        row = [stage, format_bytes(size["bytes"]), f"{size['bits_per_weight']:.2f}"]
        for text in texts:
            measured = result[stage]["texts"][text]
            row += [f"{measured['perplexity']:.2f}", f"{measured['kl']:.4f}", f"{measured['agreement']:.1%}"]
        rows.append(row)
    columns = ["", "\nsize", "bits per\nweight"]
    for text in texts:
        short = {"books-evaluation": "books", "wikitext2": "WikiText-2"}.get(text, Path(text).stem)
        columns += [f"{short}\nperplexity", "\nKL", "same\ntoken"]
    common.table(*columns, rows=rows)
    if "recovered" in result:
        common.out.print("quantized: without the side paths; recovered: with them, their size counted", style="dim")
