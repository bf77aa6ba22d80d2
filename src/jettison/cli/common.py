"""What commands share: options, tables, the JSON file."""

import json
import os
import re
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from jettison.core.errors import UsageError
from jettison.core.progress import Console, set_quiet

MAY_BE_EMPTY = ("--prompt", "-p")
PAGE = 100  # columns, where no terminal says how many there are
if isinstance(sys.stdout, TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files, and terminals, are not always UTF-8
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PAGE)

Model = Annotated[str, typer.Argument(help="scribe (bundled), a model folder, or a hub id such as Qwen/Qwen3-4B.")]
Shape = Annotated[
    str, typer.Argument(help="A known shape such as qwen3-4b, a model folder, a config.json, a hub id, or scribe.")
]
Folder = Annotated[Path, typer.Argument(help="A folder that `jettison compress` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result. A killed run continues in it.")]
DeviceName = Annotated[str, typer.Option("--device", help="A name of `jettison devices`, this, or a .yaml file.")]
Tps = Annotated[float | None, typer.Option("--tps", help="Tokens per second to reach.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory to stay within, such as 3GB.")]
Context = Annotated[int, typer.Option("--context", help="Tokens of context the budget is for.")]
RuntimeName = Annotated[
    str | None,
    typer.Option("--runtime", "--engine", help="Only what it loads: jettison, transformers, vllm, llama.cpp, ..."),
]
Recovery = Annotated[
    bool, typer.Option("--recovery/--no-recovery", help="Whether 2 bits to be recovered by training may be chosen.")
]
Losses = Annotated[
    str, typer.Option("--losses", help="Expected losses: prior, gradients, measured, or auto: what is known.")
]
Refine = Annotated[int, typer.Option("--refine", help="Measure this many plans around the best one.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A name of `jettison recipes`, or a .yaml file.")]
Changes = Annotated[list[str], typer.Option("--set", help="Change the recipe: verb.option=value. Repeatable.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Texts = Annotated[list[str], typer.Option("--text", help="books-evaluation, wikitext2, or a UTF-8 file. Repeatable.")]
Tasks = Annotated[
    list[str], typer.Option("--tasks", help="jettison_suite (bundled), or a task of lm-eval. Repeatable.")
]
Images = Annotated[
    str | None,
    typer.Option("--images", help="Images of an image classifier: a folder of class subfolders, or a parquet file."),
]
Count = Annotated[int | None, typer.Option("--count", help="Images at most that are measured, spread evenly.")]
Items = Annotated[int | None, typer.Option("--items", help="Items of each task at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it would take; do nothing.")]


def refuse_empty(arguments: Iterable[str]) -> None:
    """Raises UsageError for an empty argument, such as ``--out ""``, which would be the folder that one is in."""
    for before, argument in pairwise(["", *arguments]):
        option = before if argument == "" else argument[:-1] if re.fullmatch(r"--[\w-]+=", argument) else None
        if option is not None and option not in MAY_BE_EMPTY:
            what = option if option.startswith("-") else "an argument"
            raise UsageError(f"{what} is empty: give a value or leave it out")


def begin(quiet: bool, *files: Path | None, several: bool = False) -> None:
    """files: that the command will write, which are looked at before it works; None for those that it will not.
    several: whether the command may run in several processes, under `accelerate launch`; the first one speaks.

    Raises UsageError for a file that cannot be written, and for one that is named twice.
    """
    first = os.environ.get("RANK", "0") == "0"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not several:
        raise UsageError("only `jettison recover` runs in several processes: start this command without a launcher")
    set_quiet(quiet or not first)
    out.quiet = not first
    if given := [file for file in files if file is not None]:
        _check_files(given)


def _check_files(files: list[Path]) -> None:
    from jettison.core.files import writable_file

    places = [writable_file(file).resolve() for file in files]
    if len(set(places)) < len(places):
        raise UsageError(f"{max(places, key=places.count)} would be written twice: give each file a name of its own")


def finish(result: Any, file: Path | None) -> None:
    if file is not None and not out.quiet:
        from jettison.core.files import write_json

        write_json(file, json.loads(json.dumps(result, default=str)))


def table(*columns: str, rows: list[list[str]], text: tuple[str, ...] = ()) -> None:
    """Print a table: numbers on the right, the first column and those named in ``text`` on the left. Cells are plain:
    names may have brackets."""
    drawn = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for number, column in enumerate(columns):
        words = column in text
        drawn.add_column(Text(column), justify="left" if words or number == 0 else "right", no_wrap=not words)
    for row in rows:
        drawn.add_row(*map(Text, row))
    out.print(drawn)


def example(*lines: str) -> str:
    """An epilog that shows how to call the command."""
    return "Example:\n\n" + "\n\n".join(f"[cyan]$ {line}[/cyan]" for line in lines)
