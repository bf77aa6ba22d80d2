"""Parts that several commands use: options, tables, the JSON file."""

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
PAGE = 100  # columns of the output where it does not go to a terminal
if isinstance(sys.stdout, TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid UTF-8, nor every terminal UTF-8
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PAGE)

Model = Annotated[
    str,
    typer.Argument(help="The model: scribe (bundled), a model folder, a GGUF file, or a hub id such as Qwen/Qwen3-4B."),
]
Shape = Annotated[
    str,
    typer.Argument(
        help="The model: a known shape such as qwen3-4b, a model folder, a config.json, a hub id, or scribe."
    ),
]
Folder = Annotated[Path, typer.Argument(help="A folder that `jettison compress` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result; a run that was killed continues there.")]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", help="Target device: a name from `jettison devices`, this (this machine), or a .yaml file."
    ),
]
Tps = Annotated[float | None, typer.Option("--tps", help="Tokens per second that decoding must reach.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory that the model may use at most, such as 3GB.")]
Latency = Annotated[
    str | None,
    typer.Option(
        "--latency", help="Latency that a classifier or perception model must reach, as a share of its own: 0.7x."
    ),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", help="Images per second, one by one, that an image classifier or perception model reaches."),
]
Speedup = Annotated[
    str | None,
    typer.Option("--speedup", help="How many times as fast a diffusion pipeline must run, on this machine: 2.5."),
]
Context = Annotated[int, typer.Option("--context", help="Tokens of context at which the budget must hold.")]
RuntimeName = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        "--engine",
        help="Use only what this runtime can load: jettison, transformers, vllm, llama.cpp, ...",
    ),
]
Recovery = Annotated[
    bool,
    typer.Option("--recovery/--no-recovery", help="Whether the plan may use 2 bits with recovery by training."),
]
Losses = Annotated[
    str,
    typer.Option(
        "--losses",
        help="Source of the expected losses: prior, gradients, measured, or auto. auto in plan: losses that were "
        "measured before, else prior. auto in fit: gradients if the model fits in memory, else prior.",
    ),
]
Refine = Annotated[
    int, typer.Option("--refine", help="Measure this many plans around the best one, and take the best of these.")
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="Use this recipe, not a plan: a name from `jettison recipes`, or a .yaml file."),
]
Changes = Annotated[
    list[str], typer.Option("--set", help="Change one option of the recipe: verb.option=value. Repeatable.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file, as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]
Texts = Annotated[
    list[str],
    typer.Option("--text", help="Text to measure on: books-evaluation, wikitext2, or a UTF-8 file. Repeatable."),
]
Tasks = Annotated[
    list[str],
    typer.Option("--tasks", help="Task to measure: jettison_suite (bundled), or a task of lm-eval. Repeatable."),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="Images for an image classifier: a folder with a subfolder for each class, or a parquet file.",
    ),
]
Count = Annotated[
    int | None, typer.Option("--count", help="Measure at most this many images, spread evenly over the set.")
]
Items = Annotated[int | None, typer.Option("--items", help="Measure at most this many items of each task.")]
To = Annotated[
    str | None,
    typer.Option("--to", help="At the end, write the result in these formats too, with commas; see `jettison export`."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done and its time, memory and disk, but do nothing.")
]


def refuse_empty(arguments: Iterable[str]) -> None:
    """Raise UsageError for an empty argument, such as ``--out ""``, which would mean the current folder."""
    for before, argument in pairwise(["", *arguments]):
        option = before if argument == "" else argument[:-1] if re.fullmatch(r"--[\w-]+=", argument) else None
        if option is not None and option not in MAY_BE_EMPTY:
            what = option if option.startswith("-") else "an argument"
            raise UsageError(f"{what} is empty: give a value or leave it out")


def begin(quiet: bool, *files: Path | None, several: bool = False) -> None:
    """Set up the output of a command, and check the files that it will write before it does any work.

    quiet: whether to show no progress.
    files: the files that the command will write; None for an option that was not used.
    several: whether the command may run in several processes, under `accelerate launch`; only the first one prints.
    Raises UsageError for a file that cannot be written, for two files with the same name, and for a command that is
    started in several processes but cannot be.
    """
    first = os.environ.get("RANK", "0") == "0"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not several:
        raise UsageError("only `jettison recover` runs in several processes: start this command without a launcher")
    set_quiet(quiet or not first)
    out.quiet = not first
    if outputs := [file for file in files if file is not None]:
        _check_files(outputs)


def _check_files(files: list[Path]) -> None:
    from jettison.core.files import writable_file

    paths = [writable_file(file).resolve() for file in files]
    if len(set(paths)) < len(paths):
        raise UsageError(f"{max(paths, key=paths.count)} would be written twice: give each file a name of its own")


def finish(result: Any, file: Path | None) -> None:
    """Write ``result`` to ``file`` as JSON, in the first process only. file: None writes nothing."""
    if file is not None and not out.quiet:
        from jettison.core.files import write_json

        write_json(file, json.loads(json.dumps(result, default=str)))


def table(*columns: str, rows: list[list[str]], text: tuple[str, ...] = ()) -> None:
    """Print a table.

    The first column and the columns named in ``text`` are aligned left, all others right. Cells are shown as they are,
    without markup: names may contain brackets.
    """
    view = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for number, column in enumerate(columns):
        words = column in text
        view.add_column(Text(column), justify="left" if words or number == 0 else "right", no_wrap=not words)
    for row in rows:
        view.add_row(*map(Text, row))
    out.print(view)


def example(*lines: str) -> str:
    """Return the end of a command's help: examples of calling it, one per line."""
    return "Example:\n\n" + "\n\n".join(f"[cyan]$ {line}[/cyan]" for line in lines)
