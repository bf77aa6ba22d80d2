"""What the tests of the parallel map call in other processes, which import it from here."""

import os
import time
from pathlib import Path

from jettison.core.errors import UsageError


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0.0)  # the first ends last
    return number * number, os.getpid()


def picky(number: int) -> int:
    if number == 2:
        raise ValueError("two is not liked")
    if number == 3:
        raise UsageError("three = 3: valid are others")
    return number


def die(number: int) -> int:
    os._exit(1)


def slow_start(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def fail_or_sleep(number: int) -> int:
    if number:
        time.sleep(600)
    raise UsageError("zero is not valid")
