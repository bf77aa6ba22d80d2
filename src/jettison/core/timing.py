"""Time that is taken while other processes leave the cores alone."""

import os
import time
from collections.abc import Callable

import psutil

SECONDS = 0.12  # of a sample at least
FOREIGN = 0.2  # cores that other processes may use during a sample; one busy thread makes a spinning pool crawl
TRIES, CALM = 20, 0.02


def sample(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds of one run, the mean over a sample, and how many cores other processes used: the calmest of TRIES."""

    def mean() -> float:
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            run()
            runs += 1
        return (time.perf_counter() - start) / runs

    return calmest(mean)


def calmest(measure: Callable[[], float]) -> tuple[float, float]:
    """What ``measure`` finds, and how many cores other processes used meanwhile: the calmest of TRIES."""
    found = []
    for _ in range(TRIES):
        time.sleep(CALM)  # threads that spin go to sleep
        own, others, start = _own_seconds(), _busy_seconds(), time.perf_counter()
        value = measure()
        wall = time.perf_counter() - start
        foreign = max(0.0, (_busy_seconds() - others - (_own_seconds() - own)) / wall)
        found.append((foreign, value))
        if foreign <= FOREIGN:
            break
    foreign, value = min(found)
    return value, foreign


def _own_seconds() -> float:
    """Of processors, with those that this process has started and waited for."""
    return time.process_time() + sum(os.times()[2:4])  # the latter in steps of 10 ms


def _busy_seconds() -> float:
    """Of all cores and processes; what a virtual machine's neighbours took as well."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
