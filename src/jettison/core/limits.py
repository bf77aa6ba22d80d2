"""A limit of processor time for library code whose work depends on a user's file."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jettison.core.errors import UsageError


@contextmanager
def cpu_limit(seconds: float, what: str) -> Iterator[None]:
    """Limit the processor time of a block. Raises UsageError inside the block, ``WHAT takes more than N seconds``.

    Python code is interrupted; a call into C is not. Signals reach only the main thread. There is no limit in other
    threads, if other code uses the timer, and on systems without it.
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
