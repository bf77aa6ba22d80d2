"""Stopping a command by Ctrl-C, SIGTERM or SIGHUP, within about two seconds, without losing finished work.

- The first signal raises ``Stopped`` in the main thread, so that files, child processes and the terminal are cleaned
  up. This also works while modules are being imported; therefore this file imports only small modules.
- The main thread may be in C++ code, where Python cannot raise, or in a library that swallows exceptions. So a second
  thread also receives the signal, and ends the process after ``PATIENCE``. That is safe: files are whole or absent.
- A second signal ends the process at once.
- Signals that the parent process has set to be ignored (nohup) stay ignored.
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
APART = 0.2  # seconds; signals that come closer together count as one, sent to the process and to its group
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
RESUMED, MEASURE = (
    ("fit", "compress", "recover", "export", "perceive world", "perceive train", "offload attack"),
    ("plan", "draft"),
)
CONTINUES = "stopped. Nothing finished is lost: run the same command again and it continues"
KEEPS = "stopped. What was measured on the model is kept: run the same command again"
STARTS_OVER = "stopped. There is nothing to continue: the same command starts over"


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


class Stoppable:
    """Context manager that makes a signal end the process, with exit code 128 + the signal's number and a message.

    arguments: the command line; it decides whether the message says that the command can be continued.
    The process must end after the block: the default action of the signals is restored, so that they can also stop the
    shutdown of Python.
    """

    def __init__(self, arguments: list[str]):
        words = [word for word in arguments if not word.startswith("-")]
        command = next(iter(words), "")
        resumed = (command in RESUMED or " ".join(words[:2]) in RESUMED) and "--dry-run" not in arguments
        self.message = CONTINUES if resumed else KEEPS if command in MEASURE else STARTS_OVER
        self.signal, self._over, self._handled = 0, False, set()
        self._printed = threading.Lock()  # acquired once, by the thread that prints the message

    def __enter__(self) -> "Stoppable":
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        if os.name == "posix":
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handled.add(number)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        self._over = True
        if self.signal:
            self._print_message()
            self._leave()
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        if os.name == "posix":
            signal.set_wakeup_fd(-1)
            os.close(self._writer)

    def _leave(self) -> None:
        """End the process as Python does, but without tearing down the modules, which takes time.

        The second thread is still watching, so a step that hangs is ended too.
        """
        with contextlib.suppress(Exception):  # an exit handler of a library may fail
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + self.signal)

    def _handle(self, number: int, _frame: Any) -> None:
        """Raise ``Stopped`` in the main thread on the first signal."""
        if not (self.signal or self._over):
            self.signal = number
            raise Stopped

    def _listen(self, reader: int) -> None:
        """Watch for signals; runs in the second thread. Python writes the number of each signal to the pipe."""
        first, timer = 0.0, None
        while numbers := os.read(reader, 64):
            for number in set(numbers) & self._handled:
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
        """End the process at once: show the cursor, print the message, kill the child processes."""
        with contextlib.suppress(OSError):
            if os.isatty(stderr()):
                os.write(stderr(), b"\x1b[?25h")  # a progress bar hides the cursor
        self._print_message()
        if "multiprocessing.process" in sys.modules:
            with contextlib.suppress(Exception):  # we call it without its locks, so it may fail
                for child in sys.modules["multiprocessing.process"].active_children():
                    child.kill()
        os._exit(128 + number)

    def _print_message(self) -> None:
        """Print the message once; under a launcher only the first process prints it.

        It is written to the file descriptor: the locks of Python's buffers may be held by a thread.
        """
        if self._printed.acquire(blocking=False) and os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):
                os.write(
                    stderr(), b"\n" * os.isatty(stderr()) + self.message.encode() + b"\n"
                )  # on a new line, after the ^C that the terminal shows

    def _unraisable(self, failure: Any) -> None:
        """Report no ``Stopped`` that Python cannot raise, in a finalizer or in a callback of an import.

        The second thread then ends the process. Other exceptions go to the previous hook.
        """
        if not issubclass(failure.exc_type, Stopped):
            self._hook(failure)
