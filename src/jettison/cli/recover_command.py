"""jettison recover"""

from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli.fit_command import show_forecast


def register(app: typer.Typer) -> None:
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
        str | None, typer.Option("--teacher", help="Where the original is now, if it has moved.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Drop an earlier recovery and begin again.")] = False,
    save_every: Annotated[float, typer.Option("--save-every", min=0, help="Seconds between saves.")] = 60.0,
    images: common.Images = None,
    dry_run: common.DryRun = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Win accuracy back: distil the original into LoRA adapters or scales. A killed run continues when called again."""
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
