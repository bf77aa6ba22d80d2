"""The command ``jettison plan``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jettison.cli import common

if TYPE_CHECKING:
    from jettison.recipe.recipe import Recipe

EXAMPLES = (
    "jettison plan qwen3-4b --device strix-halo --tps 90 --context 4096 -o recipe.yaml",
    "jettison plan scribe --device raspberry-pi-5 --memory 8MB --pareto",
    "jettison plan my-classifier --latency 0.7x -o recipe.yaml",
    "jettison plan my-pipeline --speedup 2.5 -o recipe.yaml",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("plan", epilog=common.example(*EXAMPLES))(plan)


def plan(
    model: common.Shape,
    device: common.DeviceName = "this",
    tps: common.Tps = None,
    memory: common.Memory = None,
    latency: common.Latency = None,
    fps: common.Fps = None,
    speedup: common.Speedup = None,
    context: common.Context = 2048,
    batch: Annotated[int, typer.Option("--batch", help="Number of sequences that are decoded together.")] = 1,
    cache_bits: Annotated[
        int, typer.Option("--cache-bits", help="Bits of the cached keys and values: 16, 8 or 4.")
    ] = 16,
    runtime: common.RuntimeName = None,
    recovery: common.Recovery = True,
    losses: common.Losses = "auto",
    refine: common.Refine = 0,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also list the Pareto front of memory and expected loss.")
    ] = False,
    changes: common.Changes = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the recipe to this file.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the plan to this file, as an HTML page.")
    ] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose the bits of every layer for a device and a budget; for an image classifier, plan to prune its depth; for a
    diffusion pipeline, plan a program that skips blocks.

    Reads the model's config, and its weights only if --losses, --refine or --fps need them.
    """
    from jettison.planning.picture import plan_data, plan_summary
    from jettison.planning.planner import make_plan

    common.begin(quiet, json, out, report)
    if any(budget is not None for budget in (latency, fps, speedup)):
        budgets = {"tps": tps, "memory": memory, "latency": latency, "fps": fps, "speedup": speedup}
        return plan_step(model, budgets, device, changes or [], out, report, json)
    chosen = make_plan(
        model, device=device, tps=tps, memory=memory, context=context, batch=batch, cache_bits=cache_bits,
        runtime=runtime, recovery=recovery, losses=losses, refine=refine, changes=changes or [], seed=seed,
    )  # fmt: skip
    data = plan_data(chosen) if report or pareto or json else plan_summary(chosen)
    show_roles(data)
    common.out.print()
    show_presets(data)
    if pareto:
        common.out.print()
        show_front(data)
    common.out.print("\n" + data["verdict"], style="bold", soft_wrap=True, markup=False)
    finish_recipe(model, chosen.recipe, out)
    if report is not None:
        from jettison.reports.plan_page import write_plan  # imports plotly, which is slow

        write_plan(data, report)
    common.finish({"recipe": chosen.recipe.to_dict(), "plan": data}, json)


def plan_step(
    model: str, budgets: dict[str, Any], device: str, changes: list[str], out: Path | None, report: Path | None,
    json: Path | None,
) -> None:  # fmt: skip
    """Plan a recipe of one step, for an image classifier (depth), a perception model (bits) or a pipeline (a program).

    Print the recipe with its reasons, and write it to ``out``.
    """
    from jettison.core.errors import UsageError
    from jettison.graph.folder import ModelFolder
    from jettison.planning.budget import check_budget
    from jettison.planning.depth import plan_latency
    from jettison.planning.program import plan_program

    if report is not None:
        raise UsageError("--report draws plans of bits: this plan is its recipe; write that with --out")
    source = ModelFolder(model)
    check_budget(source, budgets, device=device)
    if budgets["speedup"] is not None:
        recipe = plan_program(source, speedup=budgets["speedup"], changes=changes)
    else:
        recipe = plan_latency(source, latency=budgets["latency"], fps=budgets["fps"], changes=changes)
    common.out.print(f"recipe {recipe.name}: {recipe.use}", style="bold", markup=False)
    finish_recipe(model, recipe, out)
    if not recipe.steps and out is None:
        common.out.print(f"{model} meets this budget as it is", markup=False, soft_wrap=True)
    common.finish({"recipe": recipe.to_dict()}, json)


def finish_recipe(model: str, recipe: "Recipe", out: Path | None) -> None:
    """Print the reasons of a planned recipe, and write it to ``out`` unless the model meets the budget as it is."""
    from jettison.core.files import write_text

    for reason in recipe.why:
        common.out.print(f"  {reason}", markup=False, soft_wrap=True)
    if out is not None and recipe.steps:
        write_text(out, recipe.to_yaml())
    elif out is not None:
        unchanged = f"{model} meets this budget as it is: there is nothing to do, so {out} is not written"
        common.out.print(f"\n{unchanged}", markup=False, soft_wrap=True)


def show_roles(data: dict[str, Any]) -> None:
    """Print a row per role: bits and in how many blocks, weights, bytes, share of the time, expected loss."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import figures

    rows = [
        [
            row["role"],
            ", ".join(f"{choice} × {count}" if count > 1 else choice for choice, count in row["choices"].items()),
            f"{figures(row['weights'] / 1e6, 4)} M",
            format_bytes(row["bytes"]),
            f"{row['time']:.0%}",
            f"{row['loss']:.4f}",
        ]
        for row in data["roles"]
    ]
    columns = ("role", "bits × blocks", "weights", "bytes", "of the time", "loss")
    common.table(*columns, rows=rows, text=columns[1:2])


def show_presets(data: dict[str, Any]) -> None:
    """Print the plan above the presets, with the budgets that each preset misses."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import format_rate

    figures = lambda plan: [format_bytes(plan["memory"]), format_rate(plan["tokens_per_second"]), f"{plan['loss']:.4f}"]
    rows = [["this plan", *figures(data), "chosen"]]
    for preset in data["presets"]:
        rows.append([preset["name"], *figures(preset), "; ".join(preset["misses"]) or "fits"])
    common.table("recipe", "memory", "tokens/s", "loss", "budget", rows=rows, text=("budget",))


def show_front(data: dict[str, Any]) -> None:
    """Print the plans of the Pareto front: memory, speed, expected loss."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import format_rate

    rows = [
        [format_bytes(point["memory"]), format_rate(point["tokens_per_second"]), f"{point['loss']:.4f}"]
        for point in data["front"]
    ]
    common.table("memory", "tokens/s", "loss", rows=rows)
