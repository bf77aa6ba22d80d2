"""How far work is, on stderr, so that stdout stays clean: bars on a terminal, else a line at least every 30 seconds.

- ``logged``: the lines go to ``progress.log`` of a run folder as well, with times, and also where stderr is quiet.
- A step that takes long shows too: a thread of each bar writes its lines.
"""

import contextlib
import inspect
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import Event, Thread
from typing import ParamSpec, TextIO, TypeVar

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG = "progress.log"
RUN = ("journal.jsonl", "jettison.json")  # one of them is in every folder of a run
EVERY = 30.0  # seconds


class Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the program with a code of its own."""
        raise  # the BrokenPipeError that is being handled


P, T = ParamSpec("P"), TypeVar("T")

console = Console(stderr=True, highlight=False, emoji=False)
_quiet = _silent = False
_running = 0  # bars and waits
_log: "_Log | None" = None


def set_quiet(quiet: bool) -> None:
    """Whether nothing is written to stderr."""
    global _quiet
    _quiet = quiet


@contextmanager
def silent() -> Iterator[None]:
    """No lines and no bars inside, and nothing in a log."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def say(message: str) -> None:
    """One line for the user, on stderr and in the log."""
    if not (_quiet or _silent):
        console.print(message, markup=False)
    _note(message)


def logged(argument: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: what the function says, and how its bars advance, is appended to ``progress.log`` of the folder that
    its ``argument`` names. Not for a dry run."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **options: P.kwargs) -> T:
            given = signature.bind(*args, **options).arguments
            with contextlib.nullcontext() if given.get("dry_run") else log_in(Path(given[argument])):
                return function(*args, **options)

        return wrapped

    return decorate


@contextmanager
def log_in(folder: Path) -> Iterator[None]:
    """The same for a block of code. A line each, with the time before it.

    Lines wait until the folder holds a run. Where the file cannot be written, the work goes on without it. Of several
    processes under a launcher the first one writes.
    """
    global _log
    if os.environ.get("RANK", "0") != "0" or (_log and _log.folder == folder):
        yield
        return
    before, _log = _log, _Log(folder)
    try:
        yield
    except BaseException as error:
        _note(f"ended by {type(error).__name__}" + (f": {error}" if str(error) else ""))
        raise
    finally:
        _log.close()
        _log = before


class _Log:
    def __init__(self, folder: Path):
        self.folder, self.broken = folder, False
        self.file: TextIO | None = None
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.waiting = [self._dated(f"process {os.getpid()}: {command}")]

    def write(self, line: str) -> None:
        self.waiting.append(self._dated(line))
        try:
            if self.file is None and any((self.folder / name).exists() for name in RUN):
                self.file = self._opened()
            if self.file:
                self.file.write("".join(self.waiting))
                self.waiting.clear()
        except (OSError, ValueError):  # a full disk, which the work itself will meet; or another thread has closed it
            self.broken = True

    def _opened(self) -> TextIO:
        """Raises OSError where the log cannot be appended to."""
        path = self.folder / LOG
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no file")  # to open a pipe would wait for a reader
        return open(path, "a", encoding="utf-8", buffering=1)

    def _dated(self, line: str) -> str:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.file:
                self.file.close()


def _note(line: str) -> None:
    if _log and not (_silent or _log.broken):
        _log.write(line)


class Bar:
    """Work that is running: ``advance`` it, and give it a short note such as the current loss."""

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done, self.note = what, total, done, ""
        self._before, self._began = done, time.monotonic()
        self._shown: tuple[Progress, int] | None = None

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + amount, note
        if self._shown:
            progress, task = self._shown
            progress.update(task, advance=amount, note=note)

    def line(self) -> str:
        """Such as ``recover: 120 of 400, 2 minutes so far, 0.98 per second, 5 minutes left, KL 0.0123``."""
        seconds, made = time.monotonic() - self._began, self.done - self._before
        so_far = f"in {duration(seconds)}" if self.done >= self.total else f"{duration(seconds)} so far"
        parts = [f"{self.what}: {self.done} of {self.total}", so_far]
        if made and seconds > 0:
            rate = made / seconds
            parts.append(f"{rate:.3g} per second" if rate >= 0.1 else f"{duration(1 / rate)} each")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    @contextmanager
    def _reported(self, plain: bool) -> Iterator[None]:
        """plain: on stderr as well, not in the log alone."""
        over = Event()

        def report(line: str) -> None:
            if plain:
                console.print(line, markup=False, soft_wrap=True)
            _note(line)

        def watch() -> None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more: the next ``say`` meets that
                while not over.wait(EVERY):
                    report(self.line())

        _note(f"{self.what}: {self.done} of {self.total}")
        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            over.set()
            report(self.line())
        except BaseException:
            _note(self.line())
            raise
        finally:
            over.set()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """For work without steps, as a decorator too: a line every 30 seconds, and none if it is over before. Nothing is
    said where a bar is running, which speaks for itself."""
    if _silent or _running or (_quiet and _log is None):
        yield
        return
    over, began = Event(), time.monotonic()

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while not over.wait(EVERY):
                say(f"{what}: {duration(time.monotonic() - began)} so far")

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with _counted():
            yield
    finally:
        over.set()


@contextmanager
def _counted() -> Iterator[None]:
    global _running
    _running += 1
    try:
        yield
    finally:
        _running -= 1


@contextmanager
def bar(what: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """``with bar("compress", 12) as step: ... step.advance()``. ``done`` counts what an earlier run finished. shown:
    False for work that takes no time to speak of."""
    running = Bar(what, total, done)
    if _silent or not shown or (_quiet and _log is None):
        yield running
        return
    terminal = console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)
    drawn = terminal and not _quiet
    with _counted(), running._reported(plain=not (drawn or _quiet)):
        if not drawn:
            yield running
            return
        columns = (
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            running._shown = progress, progress.add_task(what, total=total, completed=done, note="")
            yield running


def duration(seconds: float) -> str:
    """As people say it: ``42 seconds``, ``2.5 hours``."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
