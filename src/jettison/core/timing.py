"""Measures times while other processes leave the cores idle."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
SECONDS = 0.12  # a sample takes at least this long
FOREIGN = 0.2  # cores that other processes may use during a sample; one busy thread slows a spinning pool a lot
TRIES, CALM = 20, 0.02  # samples at most; seconds before each


def sample(run: Callable[[], None]) -> tuple[float, float]:
    """Measure the seconds of one run, as the mean of a sample. See ``calmest`` for the result."""

    def mean() -> float:
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            run()
            runs += 1
        return (time.perf_counter() - start) / runs

    return calmest(mean)


def calmest(measure: Callable[[], float]) -> tuple[float, float]:
    """Call ``measure`` until other processes use few cores, at most TRIES times.

    Returns the result with the least use by others, and how many cores they used.
    """
    results = []
    for _ in range(TRIES):
        time.sleep(CALM)  # spinning threads go to sleep meanwhile
        value, foreign = watched(measure)
        results.append((foreign, value))
        if foreign <= FOREIGN:
            break
    foreign, value = min(results)
    return value, foreign


def watched(run: Callable[[], T]) -> tuple[T, float]:
    """Call a function. Returns its result, and how many cores other processes used meanwhile."""
    own, others, start = _own_seconds(), _busy_seconds(), time.perf_counter()
    value = run()
    wall = time.perf_counter() - start
    return value, max(0.0, (_busy_seconds() - others - (_own_seconds() - own)) / wall)


def _own_seconds() -> float:
    """Processor seconds of this process, and of child processes that it has waited for."""
    return time.process_time() + sum(os.times()[2:4])  # children are counted in steps of 10 ms


def _busy_seconds() -> float:
    """Busy seconds of all cores, including time that neighbours of a virtual machine took."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
