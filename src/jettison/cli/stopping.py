"""Ctrl-C, SIGTERM and SIGHUP stop a command within about two seconds, wherever it is, and lose nothing finished.

- The first signal raises ``Stopped`` in the main thread, so that files, other processes and the terminal are left in
  order. While modules are imported, too: this one imports only what is small.
- The main thread may be in C++, where Python raises nothing, or in a library that swallows exceptions. So a second
  thread hears of the signal too, and ends the process after ``PATIENCE``. That is safe: files are whole or absent.
- A second signal ends the process at once.
- Signals that whoever started the command lets it ignore (nohup) stay ignored.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

from jettison.core.errors import stderr

PATIENCE = 1.5  # seconds
APART = 0.2  # seconds: signals that come closer than this are one, sent to the process and to its group
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
RESUMED, MEASURE = ("fit", "compress", "recover"), ("plan", "draft")
CONTINUES = "stopped. Nothing finished is lost: run the same command again and it continues"
KEEPS = "stopped. What was found out about the model is kept: run the same command again"
STARTS_OVER = "stopped. There is nothing to continue: the same command starts over"


class Stopped(KeyboardInterrupt):
    """A signal said that the command shall end."""


class Stoppable:
    """``with Stoppable(arguments): ...`` exits with 128 + the signal's number once a signal has come, and says so.

    arguments: of the command line, to know whether the command can be continued. The process is to end afterwards: the
    last steps of Python, too, may be stopped.
    """

    def __init__(self, arguments: list[str]):
        command = next((each for each in arguments if not each.startswith("-")), "")
        resumed = command in RESUMED and "--dry-run" not in arguments
        self.message = CONTINUES if resumed else KEEPS if command in MEASURE else STARTS_OVER
        self.signal, self._over, self._heeded = 0, False, set()
        self._said = threading.Lock()

    def __enter__(self) -> "Stoppable":
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        if os.name == "posix":
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._heeded.add(number)
                signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: Any) -> None:
        self._over = True
        if self.signal:
            self._say()
            self._leave()
        for number in self._heeded:
            signal.signal(number, signal.SIG_DFL)
        if os.name == "posix":
            signal.set_wakeup_fd(-1)
            os.close(self._writer)

    def _leave(self) -> None:
        """As Python ends, but without taking all modules apart, which takes a moment. The second thread still looks."""
        with contextlib.suppress(Exception):  # of a handler of some library
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + self.signal)

    def _heard(self, number: int, _frame: Any) -> None:
        if not (self.signal or self._over):
            self.signal = number
            raise Stopped

    def _listen(self, reader: int) -> None:
        """In the second thread. Python writes the number of every signal to the pipe as it arrives."""
        first, timer = 0.0, None
        while heard := os.read(reader, 64):
            for number in set(heard) & self._heeded:
                if timer is None:
                    first, timer = time.monotonic(), threading.Timer(PATIENCE, self._end, (number,))
                    timer.daemon = True
                    timer.start()
                elif time.monotonic() - first > APART:
                    self._end(number)
        if timer is not None:
            timer.cancel()
        os.close(reader)

    def _end(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if os.isatty(stderr()):
                os.write(stderr(), b"\x1b[?25h")  # a bar hides the cursor
        self._say()
        if "multiprocessing.process" in sys.modules:
            with contextlib.suppress(Exception):  # it is used past its own locks
                for child in sys.modules["multiprocessing.process"].active_children():
                    child.kill()
        os._exit(128 + number)

    def _say(self) -> None:
        """Once, and under a launcher by the first process only. Past Python's buffers, whose locks may be held."""
        if self._said.acquire(blocking=False) and os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):
                os.write(
                    stderr(), b"\n" * os.isatty(stderr()) + self.message.encode() + b"\n"
                )  # after the terminal's own ^C

    def _unraisable(self, found: Any) -> None:
        """An exception cannot leave a finalizer or a callback of an import: the second thread ends the process then."""
        if not issubclass(found.exc_type, Stopped):
            self._hook(found)
