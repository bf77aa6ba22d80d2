"""The command ``jettison compress``."""

from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli.fit_command import show_forecast


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compress", epilog=common.example("jettison compress scribe --recipe w4 --out runs/scribe-w4"))(
        compress
    )


def compress(
    model: common.Model,
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe: a name from `jettison recipes`, or a .yaml file.")],
    out: common.Out,
    changes: common.Changes = None,
    seed: common.Seed = 0,
    spill: Annotated[
        bool, typer.Option("--spill", help="Keep calibration activations on disk instead of in memory.")
    ] = False,
    runtime: common.RuntimeName = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Prune the matrices of a block in this many processes.")
    ] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="Address of a Ray cluster that prunes the matrices instead.")
    ] = None,
    images: common.Images = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format of the checkpoint; by default the first one that can store the result."),
    ] = None,
    dry_run: common.DryRun = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Apply the steps of a recipe; those that prune and quantize, block by block.

    A run that was killed continues when you run the same command again.
    """
    from jettison.core.bytesize import format_bytes
    from jettison.formats.card import program_words
    from jettison.pipeline.compression import compress as run
    from jettison.pipeline.size import measure_size
    from jettison.planning.forecast import forecast
    from jettison.recipe.recipe import load_recipe, with_images

    if changes is None:
        changes = []
    common.begin(quiet, json)
    if dry_run:
        result = forecast(model, with_images(load_recipe(recipe, changes), images), runtime=runtime)
        show_forecast(result)
    else:
        spread = {"workers": workers, "address": address, "format": format, "images": images}
        result = run(model, recipe, out, changes=changes, seed=seed, spill=spill, runtime=runtime, **spread)
        size = measure_size(out)
        common.out.print(
            f"{out}: {format_bytes(size['bytes'])}, {size['bits_per_weight']:.2f} bits per weight",
            soft_wrap=True,
            markup=False,
        )
        if result.get("program"):
            common.out.print(f"program: {program_words(result['program'])}", soft_wrap=True, markup=False)
        result |= {"size": size}
    common.finish(result, json)
