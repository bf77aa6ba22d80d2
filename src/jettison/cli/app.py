"""The program ``jettison``: its commands, and what it does with errors."""

import importlib
import os
import signal
import sys
import warnings

import typer
from rich.console import Console

from jettison.cli import common
from jettison.errors import JettisonError, UsageError

COMMANDS = (
    "fit",
    "plan",
    "compress",
    "recover",
    "evaluate",
    "report",
    "compare",
    "generate",
    "draft",
    "bench",
    "devices",
    "recipes",
    "xr",
)
FAILED, BAD_USAGE = 1, 2


def build() -> typer.Typer:
    app = typer.Typer(
        name="jettison",
        help="Make neural networks fit small devices: plan, compress, recover, prove.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    for name in COMMANDS:
        importlib.import_module(f"jettison.cli.{name}_command").register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Exit with 0 when done, 1 when something failed or was stopped, 2 when asked wrongly."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    signal.signal(signal.SIGINT, _stop)
    try:
        common.refuse_empty(sys.argv[1:] if arguments is None else arguments)
        build()(arguments)
    except JettisonError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(BAD_USAGE if isinstance(error, UsageError) else FAILED)


def _stop(*_) -> None:
    raise JettisonError("stopped. Nothing finished is lost: run the same command again and it continues")
