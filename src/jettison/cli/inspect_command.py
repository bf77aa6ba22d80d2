"""The command ``jettison inspect``."""

from collections import defaultdict
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect", epilog=common.example("jettison inspect scribe", "jettison inspect model.gguf --all"))(
        inspect
    )


def inspect(
    model: common.Model,
    every: Annotated[
        bool, typer.Option("--all", help="List every matrix, not one line for each role and type.")
    ] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Show what a model consists of (matrices, roles, types, bits, bytes), and which runtimes would load it.

    Reads no weights, writes nothing.
    """
    from jettison.core.bytesize import format_bytes
    from jettison.pipeline.inspection import inspect as run

    common.begin(quiet, json)
    result = run(model)
    common.out.print(
        f"{result['model']}: {result['family']}, {result['parameters']:,} parameters, {format_bytes(result['bytes'])} "
        f"as {result['format']}",
        markup=False,
    )
    shape = lambda row: " x ".join(map(str, row["shape"]))
    if every:
        rows = [[row["name"], row["role"], shape(row), row["type"], f"{row['bits']:.4g}", format_bytes(row["bytes"])]
                for row in result["matrices"]]  # fmt: skip
        common.table("matrix", "role", "shape", "type", "bits", "bytes", rows=rows, text=("role", "type"))
    else:
        groups = defaultdict(list)
        for row in result["matrices"]:
            groups[row["role"], row["type"], shape(row)].append(row)
        total = lambda group: format_bytes(sum(row["bytes"] for row in group))
        rows = [[role, str(len(group)), size, kind, f"{group[0]['bits']:.4g}", total(group)]
                for (role, kind, size), group in groups.items()]  # fmt: skip
        rows.append(["other", "", "", "", "", format_bytes(result["other_bytes"])])
        common.table("role", "matrices", "shape", "type", "bits", "bytes", rows=rows, text=("type",))
    common.out.print()
    words = {True: "yes", False: "no", None: "not known"}
    verdicts = [[row["title"], words[row["loads"]], "; ".join(row["reasons"])] for row in result["runtimes"].values()]
    common.table("runtime", "loads it", "", rows=verdicts, text=("loads it", ""))
    common.finish(result, json)
