"""Progress bars with rate and time left, on stderr, so that stdout stays clean. Silent when asked to be."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
_quiet = False


def set_quiet(quiet: bool) -> None:
    global _quiet
    _quiet = quiet


@contextmanager
def silent() -> Iterator[None]:
    """No lines and no bars inside."""
    before = _quiet
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


def say(message: str) -> None:
    """One line for the user, on stderr."""
    if not _quiet:
        console.print(message, markup=False)


class Bar:
    """A running progress bar: ``advance`` it, and give it a short note such as the current loss."""

    def __init__(self, progress: Progress, task: int):
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=note)


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Bar]:
    """``with bar("compress", 12) as step: ... step.advance()``. ``done`` counts what an earlier run finished."""
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=_quiet) as progress:
        yield Bar(progress, progress.add_task(what, total=total, completed=done, note=""))
