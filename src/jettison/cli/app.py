"""The program ``jettison``: it builds the commands, and turns errors and signals into messages and exit codes.

Until ``Stoppable`` has installed its signal handlers, this file imports only small modules, so that Ctrl-C works early.
"""

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
    "inspect",
    "draft",
    "verify",
    "export",
    "bench",
    "devices",
    "recipes",
    "offload",
    "xr",
    "perceive",
)
FAILED, BAD_USAGE, BROKEN_PIPE = 1, 2, 141  # 141 is the code that a shell reports for a program that SIGPIPE ended
OUTPUT_FAILS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)  # errors of writing to stdout
CODES = (
    "Exit codes: 0 success; 1 failure; 2 wrong arguments or input; 130 stopped by Ctrl-C, 143 by SIGTERM. "
    "After a stop, fit, compress, recover, perceive world, perceive train and offload attack continue when you run the "
    "same command again."
)


class Interrupted(BaseException):
    """Carry a KeyboardInterrupt through typer, which would otherwise turn it into an exit code of its own."""


def build() -> "typer.Typer":
    """Return the typer program with all commands."""
    os.environ.setdefault("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the user passes the shell's name
    import typer
    from typer.core import TyperGroup

    class Commands(TyperGroup):
        def invoke(self, context: Any) -> Any:
            """Handle interrupts and failures to write the output before typer does.

            An OSError with a file name is not about stdout, so it is raised unchanged.
            """
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
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None: ...

    for name in COMMANDS:
        importlib.import_module(f"jettison.cli.{name}_command").register(app)
    return app


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"jettison {version('jettison')}")
        sys.exit()


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with one of the codes in ``CODES``.

    arguments: the command line. None means that of the process; then signals are handled here, and the process ends
    with the command. If arguments are passed, handling signals is left to the caller.
    """
    with Stoppable(sys.argv[1:]) if arguments is None else nullcontext():
        _prepare()
        try:
            from jettison.cli import common

            common.refuse_empty(sys.argv[1:] if arguments is None else arguments)
            build()(arguments)
        except Interrupted as carrier:
            raise carrier.__cause__ from None
        except JettisonError as error:
            from rich.console import Console

            Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(f"error: {error}", markup=False)
            sys.exit(BAD_USAGE if isinstance(error, UsageError) else FAILED)


def _drop_output() -> None:
    """Send the output that is still buffered to /dev/null; Python would report an error for it when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def _prepare() -> None:
    """Set environment variables, warnings and streams before libraries are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller started us with the stream closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (stays open until the process ends)
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors="replace")  # show '?' for a character that the terminal's encoding lacks
