"""The command ``jettison compare``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compare", epilog=common.example("jettison compare runs/w4 runs/w3 runs/w2"))(compare)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders that `jettison fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the HTML page to this file.")] = Path("compare.html"),
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Compare runs: size, speed, and quality on the texts or images that all of them were measured on."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import figures, format_rate
    from jettison.reports.compare import write_comparison

    common.begin(quiet, json, out)
    result = write_comparison(folders, out)
    for text in result["texts"]:
        rows = []
        for row in result["rows"]:
            measured, speed = row["texts"][text], row["decode_tokens_per_second"]
            rows.append(
                [
                    row["name"],
                    row["recipe"],
                    format_bytes(row["bytes"]),
                    f"{row['bits_per_weight']:.2f}",
                    format_rate(speed) if speed else "",
                    f"{measured['perplexity']:.2f}",
                    "" if measured["kl"] is None else f"{measured['kl']:.4f}",
                    "" if measured["agreement"] is None else f"{measured['agreement']:.1%}",
                    "" if measured["recovered"] is None else f"{measured['recovered']:.1%}",
                ]
            )
        common.out.print(f"[bold]{escape(text)}[/bold]")
        columns = ("run", "recipe", "size", "bits", "tokens/s", "perplexity", "KL", "same token", "recovered")
        common.table(*columns, rows=rows, text=("run", "recipe"))
        common.out.print()
    for name in result["images"]:
        common.out.print(f"[bold]{escape(name)}[/bold]")
        rows = [
            [
                row["name"],
                row["recipe"],
                format_bytes(row["bytes"]),
                f"{row['bits_per_weight']:.2f}",
                figures(row["latency_ms"]) if row["latency_ms"] else "",
                f"{row['images'][name]['accuracy']:.1%}",
                *(
                    "" if score is None else form.format(score)
                    for form, score in (
                        ("{:.4f}", row["images"][name]["kl"]),
                        ("{:.1%}", row["images"][name]["agreement"]),
                    )
                ),
            ]
            for row in result["rows"]
        ]
        columns = ("run", "recipe", "size", "bits", "ms", "accuracy", "KL", "same class")
        common.table(*columns, rows=rows, text=("run", "recipe"))
        common.out.print()
    for note in result["notes"]:
        common.out.print(note, style="dim", markup=False)
    common.out.print(str(out), soft_wrap=True, markup=False)
    common.finish(result, json)
