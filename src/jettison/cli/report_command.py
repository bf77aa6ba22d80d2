"""The command ``jettison report``."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report", epilog=common.example("jettison report runs/scribe"))(report)


def report(
    folder: common.Folder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the page to this file; by default report.html in FOLDER.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Write the results of a run as one self-contained HTML page."""
    from jettison.reports.page import write_report

    common.begin(quiet, json, out)
    page = write_report(folder, out)
    common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish({"page": str(page)}, json)
