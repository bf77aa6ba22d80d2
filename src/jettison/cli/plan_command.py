"""jettison plan"""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    app.command(
        "plan", epilog=common.example("jettison plan scribe --device raspberry-pi-5 --memory 8MB -o recipe.yaml")
    )(plan)


def plan(
    model: common.Model,
    device: common.DeviceName = "this",
    tps: common.Tps = None,
    memory: common.Memory = None,
    context: common.Context = 2048,
    changes: common.Changes = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the recipe to this file.")] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose a recipe for a device and a budget. Reads the config of the model, not its weights."""
    from jettison.files import write_text
    from jettison.plan import plan as choose
    from jettison.plan import rank_presets
    from jettison.units import format_bytes

    if changes is None:
        changes = []
    common.begin(quiet)
    budget = {"device": device, "tps": tps, "memory": memory, "context": context, "changes": changes}
    choices = rank_presets(model, **budget)
    rows = [
        [
            choice.recipe.name,
            format_bytes(choice.cost.memory) if choice.cost.memory < float("inf") else "",
            f"{choice.cost.tokens_per_second:.4g}",
            f"{choice.recipe.loss:.3f}" if choice.recipe.loss is not None else "",
            "; ".join(choice.misses) or "fits",
        ]
        for choice in choices
    ]
    common.table("recipe", "memory", "tokens/s", "loss on scribe", "budget", rows=rows, text=("budget",))
    recipe = choose(model, **budget)
    common.out.print(f"\n[bold]{recipe.name}[/bold]: {recipe.use}")
    if out is not None:
        write_text(out, recipe.to_yaml())
    common.finish({"recipe": recipe.to_dict(), "choices": [_as_dict(choice) for choice in choices]}, json)


def _as_dict(choice) -> dict:
    fits = choice.cost.memory < float("inf")
    return {
        "recipe": choice.recipe.name,
        "memory": choice.cost.memory if fits else None,
        "tokens_per_second": choice.cost.tokens_per_second if fits else None,
        "loss": choice.recipe.loss,
        "misses": list(choice.misses),
    }
