"""Functions that the tests of the parallel map call in other processes, which import them from this file."""

import os
import time
from pathlib import Path

from jettison.core.errors import UsageError


def slow_square(number: int) -> tuple[int, int]:
    """Return the square and the process id; slow for 0."""
    time.sleep(0.2 if number == 0 else 0.0)  # the first call ends last
    return number * number, os.getpid()


def picky(number: int) -> int:
    """Return the number. Raises ValueError for 2 and UsageError for 3."""
    if number == 2:
        raise ValueError("two is not liked")
    if number == 3:
        raise UsageError("three = 3: valid are others")
    return number


def die(number: int) -> int:
    """End the process without an exception."""
    os._exit(1)


def slow_start(folder: str) -> None:
    """Note the process id as a file in ``folder``, then sleep."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def fail_or_sleep(number: int) -> int:
    """Raise UsageError for 0; sleep for others."""
    if number:
        time.sleep(600)
    raise UsageError("zero is not valid")
