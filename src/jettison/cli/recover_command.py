"""The command ``jettison recover``."""

from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli.fit_command import show_forecast


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "recover",
        epilog=common.example(
            "jettison recover runs/scribe --set recover.samples=1024",
            "accelerate launch --num_processes 2 -m jettison recover runs/scribe",
        ),
    )(recover)


def recover(
    folder: common.Folder,
    changes: common.Changes = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="The original model, if it has moved since the compression.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an earlier recovery and start from the beginning.")
    ] = False,
    save_every: Annotated[
        float, typer.Option("--save-every", min=0, help="Save the training state every so many seconds.")
    ] = 60.0,
    images: common.Images = None,
    dry_run: common.DryRun = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Recover accuracy: distil the original into LoRA adapters or scales.

    A run that was killed continues when you run the same command again.
    """
    from jettison.pipeline.recovery import recover as run
    from jettison.planning.forecast import forecast_recovery

    if changes is None:
        changes = []
    common.begin(quiet, json, several=True)
    if dry_run:
        result = forecast_recovery(folder, changes, teacher)
        show_forecast(result)
        common.finish(result, json)
        return
    result = run(folder, changes=changes, teacher=teacher, restart=restart, save_every=save_every, images=images)
    losses, features = result["recovery"]["loss"], result["recovery"].get("features")
    what = f"KL per token + {features:g} x feature loss" if features else "KL per token"
    common.out.print(
        f"{folder}: {what} {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last of {len(losses)}",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    common.finish(result, json)
