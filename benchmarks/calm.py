"""Repeat a measurement while other programs disturb it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

FOREIGN, STALL, TRIES = 0.1, 50.0, 3  # cores that other programs use, ms, attempts


def calm(work: Callable[[], Any], stall: float = STALL) -> tuple[Any, dict[str, float]]:
    """Run ``work`` until no other program disturbs it, at most TRIES times.

    An attempt is undisturbed if other programs used less than FOREIGN of a core meanwhile, and if this process, which
    looks every millisecond, was never held up for ``stall`` ms.
    Returns the result of the last attempt, and what was measured of other programs during that attempt.
    """
    for attempt in range(1, TRIES + 1):
        stop, stalls = threading.Event(), [0.0]
        watcher = threading.Thread(target=watch, args=(stop, stalls))
        others, start = machine_seconds() - own_seconds(), time.perf_counter()
        watcher.start()
        try:
            result = work()
        finally:
            stop.set()
            watcher.join()
        foreign = (machine_seconds() - own_seconds() - others) / (time.perf_counter() - start)
        disturbance = {"foreign_cores": round(foreign, 3), "stall_ms": round(max(stalls), 1), "attempt": attempt}
        if foreign < FOREIGN and max(stalls) < stall:
            break
        time.sleep(5)
    return result, disturbance


def watch(stop: threading.Event, stalls: list[float]) -> None:
    """Append to ``stalls`` how many ms late this thread woke up, about every millisecond, until ``stop`` is set."""
    while not stop.is_set():
        start = time.perf_counter()
        time.sleep(0.001)
        stalls.append(1e3 * (time.perf_counter() - start) - 1)


def own_seconds() -> float:
    """Return the processor seconds of this process and its children, including ended ones."""
    process = psutil.Process()
    return sum(process.cpu_times()[:4]) + sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))


def machine_seconds() -> float:
    """Return the processor seconds of all programs on this machine."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system
