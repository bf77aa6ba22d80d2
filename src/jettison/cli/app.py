"""The program ``jettison``: its commands, and what it does with errors. Its imports are small until Ctrl-C is heard."""

import errno
import importlib
import os
import sys
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from jettison.cli.stopping import Stoppable
from jettison.core.errors import JettisonError, UsageError

if TYPE_CHECKING:
    import typer

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
    "verify",
    "bench",
    "devices",
    "recipes",
    "xr",
)
FAILED, BAD_USAGE, BROKEN_PIPE = 1, 2, 141  # the last one as a shell reports a program that SIGPIPE ended
OUTPUT_FAILS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of a stream, which has no name
CODES = (
    "Exit codes: 0 done; 1 failed; 2 asked wrongly; 130 stopped by Ctrl-C, 143 by SIGTERM: fit, compress and recover "
    "then continue when called again."
)


class Interrupted(BaseException):
    """Carries a KeyboardInterrupt past typer, which would make a code of its own out of it."""


def build() -> "typer.Typer":
    import typer
    from typer.core import TyperGroup

    class Commands(TyperGroup):
        def invoke(self, context: Any) -> Any:
            """Before typer does, look at interrupts and at output that cannot be written."""
            try:
                return super().invoke(context)
            except KeyboardInterrupt as error:
                raise Interrupted from error
            except OSError as error:
                if error.filename is not None or error.errno not in OUTPUT_FAILS:
                    raise
                _drop_output()
                if error.errno == errno.EPIPE:
                    sys.exit(BROKEN_PIPE)
                raise JettisonError(f"cannot write the output: {error.strerror}") from error

    app = typer.Typer(
        name="jettison",
        cls=Commands,
        help="Make neural networks fit small devices: plan, compress, recover, prove.",
        epilog=CODES,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
        ] = False,
    ) -> None: ...

    for name in COMMANDS:
        importlib.import_module(f"jettison.cli.{name}_command").register(app)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"jettison {version('jettison')}")
        sys.exit()


def main(arguments: list[str] | None = None) -> None:
    """Exit with a code of ``CODES``. arguments: else those of the process, which then ends with the command; where they
    are given, signals are the caller's."""
    with Stoppable(sys.argv[1:]) if arguments is None else nullcontext():
        _prepare()
        try:
            from jettison.cli import common

            common.refuse_empty(sys.argv[1:] if arguments is None else arguments)
            build()(arguments)
        except Interrupted as passed:
            raise passed.__cause__ from None
        except JettisonError as error:
            from rich.console import Console

            Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(f"error: {error}", markup=False)
            sys.exit(BAD_USAGE if isinstance(error, UsageError) else FAILED)


def _drop_output() -> None:
    """What is still held back has nowhere to go; Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)


def _prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # --show-completion names the shell
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the end)
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors="replace")  # a terminal without our characters shows others
