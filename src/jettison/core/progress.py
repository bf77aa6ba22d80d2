"""Reports progress on stderr, so that stdout stays clean: bars on a terminal, else a line at least every 30 seconds.

- ``logged`` also appends the lines, with times, to ``progress.log`` of a run folder, even if stderr is quiet.
- A thread of each bar writes its lines, so a long step is also reported.
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
# Every run folder has one of these files.
RUN = ("journal.jsonl", "jettison.json", "depth/journal.jsonl", "program/journal.jsonl")
EVERY = 30.0  # seconds


class Console(rich.console.Console):
    """A console that leaves a broken pipe to the caller."""

    def on_broken_pipe(self) -> None:
        """Raise the error again. Rich would end the program with its own exit code."""
        raise  # the BrokenPipeError that is being handled


P, T = ParamSpec("P"), TypeVar("T")

console = Console(stderr=True, highlight=False, emoji=False)
_quiet = _silent = False
_running = 0  # open bars and ``waiting`` blocks
_log: "_Log | None" = None


def set_quiet(quiet: bool) -> None:
    """Set whether nothing is written to stderr."""
    global _quiet
    _quiet = quiet


@contextmanager
def silent() -> Iterator[None]:
    """Suppress lines, bars and log entries inside the block."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def say(message: str) -> None:
    """Write one line for the user to stderr and to the log."""
    if not (_quiet or _silent):
        console.print(message, markup=False)
    _note(message)


def logged(argument: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that appends a function's lines and its bars' progress to ``progress.log`` of a folder.

    argument: name of the function's parameter that is the folder.
    A call with ``dry_run`` is not logged.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **options: P.kwargs) -> T:
            arguments = signature.bind(*args, **options).arguments
            with contextlib.nullcontext() if arguments.get("dry_run") else log_in(Path(arguments[argument])):
                return function(*args, **options)

        return wrapped

    return decorate


@contextmanager
def log_in(folder: Path) -> Iterator[None]:
    """Append the lines of a block of code to ``progress.log`` of a folder, with the time before every line.

    Lines wait until the folder holds a run. If the file cannot be written, the work continues without it. Of several
    processes under a launcher only the first one writes.
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
        except (OSError, ValueError):  # the disk is full, as the work itself will report; or another thread closed it
            self.broken = True

    def _opened(self) -> TextIO:
        """Open the log for appending. Raises OSError if that is not possible."""
        path = self.folder / LOG
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no file")  # opening a pipe would wait for a reader
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
    """The progress of running work. ``advance`` moves it, with a short note such as the current loss."""

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done, self.note = what, total, done, ""
        self._before, self._began = done, time.monotonic()
        self._shown: tuple[Progress, int] | None = None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Add ``amount`` to the finished work, and show ``note`` beside the bar."""
        self.done, self.note = self.done + amount, note
        if self._shown:
            progress, task = self._shown
            progress.update(task, advance=amount, note=note)

    def line(self) -> str:
        """Return the progress as text.

        Such as ``recover: 120 of 400, 2 minutes so far, 0.98 per second, 5 minutes left, KL 0.0123``.
        """
        seconds, steps = time.monotonic() - self._began, self.done - self._before
        so_far = f"in {duration(seconds)}" if self.done >= self.total else f"{duration(seconds)} so far"
        parts = [f"{self.what}: {self.done} of {self.total}", so_far]
        if steps and seconds > 0:
            rate = steps / seconds
            parts.append(f"{rate:.3g} per second" if rate >= 0.1 else f"{duration(1 / rate)} each")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    @contextmanager
    def _reported(self, plain: bool) -> Iterator[None]:
        """Write lines about the bar during the block. plain: to stderr as well as to the log."""
        over = Event()

        def report(line: str) -> None:
            if plain:
                console.print(line, markup=False, soft_wrap=True)
            _note(line)

        def watch() -> None:
            with contextlib.suppress(OSError, ValueError):  # the reader of stderr has gone; the next ``say`` raises
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
    """Report work without steps: a line every 30 seconds, and none if it ends earlier. Also usable as a decorator.

    No line is written while a bar or another ``waiting`` is running.
    """
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
    """Show the progress of a block of work: ``with bar("compress", 12) as step: ... step.advance()``.

    total: steps of the work.
    done: steps that an earlier run finished.
    shown: False for very short work, which is not reported.
    """
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
    """Format a duration in words: ``42 seconds``, ``2.5 hours``."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
