"""jettison verify"""

from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    app.command("verify", epilog=common.example("jettison verify runs/scribe"))(verify)


def verify(
    folder: Annotated[str, typer.Argument(help="A folder that Jettison wrote, or any model that it can open.")],
    original: Annotated[
        str | None, typer.Option("--original", help="What it was made from, if that has moved.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Check that a folder is whole: hashes, tensors, finite values, tokenizer, that it runs. Exits with 1 if it is
    not. Nothing is written."""
    from jettison.pipeline.verification import verify as run

    common.begin(quiet)
    result = run(folder, original=original)
    said = {True: "ok", False: "failed", None: "not tried"}
    rows = [[each["check"], said[each["ok"]], each["found"]] for each in result["checks"]]
    common.table("check", "", "", rows=rows, text=("",))
    common.finish(result, json)
    if not result["ok"]:
        raise typer.Exit(1)
