"""The command ``jettison verify``."""

from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("verify", epilog=common.example("jettison verify runs/scribe"))(verify)


def verify(
    folder: Annotated[str, typer.Argument(help="A folder that Jettison wrote, or any model that Jettison can open.")],
    original: Annotated[
        str | None, typer.Option("--original", help="The original model, if it has moved since the compression.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Check that a model folder is complete and works: hashes, tensors, finite values, tokenizer, a run of the model.

    Exits with code 1 if a check fails. Writes nothing.
    """
    from jettison.pipeline.verification import verify as run

    common.begin(quiet)
    result = run(folder, original=original)
    verdict = {True: "ok", False: "failed", None: "not tried"}
    rows = [[check["check"], verdict[check["ok"]], check["found"]] for check in result["checks"]]
    common.table("check", "", "", rows=rows, text=("",))
    common.finish(result, json)
    if not result["ok"]:
        raise typer.Exit(1)
