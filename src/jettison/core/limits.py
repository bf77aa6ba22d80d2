"""A limit of processor time, for other people's code that a user's file drives."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jettison.core.errors import UsageError


@contextmanager
def cpu_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises UsageError inside, ``what takes more than so many seconds``, once this process has worked for so long.

    Python code is interrupted, a call into C is not. Signals reach the main thread alone: in other threads, where
    somebody else uses the timer, and on systems without it, there is no limit.
    """
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not able or signal.getsignal(signal.SIGVTALRM) is not signal.SIG_DFL:
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise UsageError(f"{what} takes more than {seconds:g} seconds")

    signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
