"""Runs by the clock are repeated while other programs disturb them."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

FOREIGN, STALL, TRIES = 0.1, 50.0, 3  # cores, ms


def calm(work: Callable[[], Any], stall: float = STALL) -> tuple[Any, dict[str, float]]:
    """The first result of ``work`` that no other program disturbed: none used more than FOREIGN of a core meanwhile,
    and this process, which looks every millisecond, was never held up for ``stall`` ms. The last of TRIES otherwise;
    and what disturbed it."""
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
        told = {"foreign_cores": round(foreign, 3), "stall_ms": round(max(stalls), 1), "attempt": attempt}
        if foreign < FOREIGN and max(stalls) < stall:
            break
        time.sleep(5)
    return result, told


def watch(stop: threading.Event, stalls: list[float]) -> None:
    while not stop.is_set():
        start = time.perf_counter()
        time.sleep(0.001)
        stalls.append(1e3 * (time.perf_counter() - start) - 1)


def own_seconds() -> float:
    """Of this process and its children, ended ones too."""
    this = psutil.Process()
    return sum(this.cpu_times()[:4]) + sum(sum(each.cpu_times()[:2]) for each in this.children(recursive=True))


def machine_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system
