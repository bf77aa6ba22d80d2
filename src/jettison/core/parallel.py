"""One ``map`` for independent work: here, in a pool of processes, or on a Ray cluster where an address is given."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import active_children, get_context, resource_tracker
from multiprocessing.connection import wait
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.numbers import check_number
from jettison.core.progress import bar

MOST = 1024  # processes
Item, Result = TypeVar("Item"), TypeVar("Result")


def map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 1,
    address: str | None = None,
    what: str = "work",
) -> list[Result]:
    """``[function(item) for item in items]``, in that order whatever finishes first, with a progress bar.

    workers: processes on this machine, each with its part of the cores; 1 stays in this process. address: of a Ray
    cluster (``auto``, ``ray://HOST:10001``, or ``local`` to start one here), which then schedules instead. With more
    than one worker ``function`` and the items are pickled: a function of a module, no lambda. ``what`` names the bar.

    Raises UsageError for fewer workers than one, an address that is none, and where Ray is missing; what ``function``
    raises of JettisonError as it is, anything else as a JettisonError that names the item. Work that has not begun is
    given up then.
    """
    items = list(items)
    check_workers(workers, address)
    if address is not None:
        finished = _on_ray(function, items, address)
    elif workers == 1 or len(items) < 2:
        finished = ((place, _call(function, item)) for place, item in enumerate(items))
    else:
        finished = _in_processes(function, items, min(workers, len(items)))
    results: list[Any] = [None] * len(items)
    with bar(what, len(items)) as progress, closing(finished):
        for place, result in finished:
            results[place] = result
            progress.advance()
    return results


def check_workers(workers: int, address: str | None) -> None:
    """Raises UsageError for what ``map`` does not take."""
    check_number("workers", workers, 1, MOST, whole=True)
    if address is not None and not re.fullmatch(r"auto|local|(ray://)?[^\s/:]+:[0-9]+", address):
        raise UsageError(f"address = {shown(address)}: auto, local, HOST:PORT or ray://HOST:PORT is needed")


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except JettisonError:
        raise
    except Exception as error:
        raise JettisonError(f"{item!r} failed: {type(error).__name__}: {error}") from error


def _in_processes(function: Callable, items: list, workers: int) -> Iterator[tuple[int, Any]]:
    """Spawned, not forked: torch's threads do not survive a fork. Workers are killed when this ends before its time,
    and end when this process is killed: then the other end of their pipe is closed."""
    threads, context = max(1, len(_cores()) // workers), get_context("spawn")
    others, (theirs, ours) = set(active_children()), context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads, theirs))
    try:
        with deaf_children():
            places = {pool.submit(_call, function, item): place for place, item in enumerate(items)}
        for future in as_completed(places):
            yield places[future], future.result()
    except BrokenProcessPool as error:
        raise JettisonError(
            f"one of {workers} workers died, as happens where memory runs out; fewer workers may do"
        ) from error
    except BaseException:
        for worker in set(active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are spawned inside never hear Ctrl-C, which a terminal sends to all: it is for the one that waits.
    From their first moment on, or they would show a traceback of their own; so they would if this process were stopped
    before it has told them what to do, and therefore signals wait here until that is done."""
    if not hasattr(signal, "pthread_sigmask") or current_thread() is not main_thread():
        yield
        return
    resource_tracker.ensure_running()  # starting it would let the signals in again
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers if callable(signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _: heard.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in heard[:1]:
            handlers[number](number, None)


def end_with(pipe: Any) -> None:
    """End this process as soon as ``pipe``, of which another process holds the other end, is closed or that is dead."""

    def watch() -> None:
        wait([pipe])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _begin(threads: int, pipe: Any) -> None:
    """A worker takes its part of the cores, whenever it imports torch."""
    end_with(pipe)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _on_ray(function: Callable, items: list, address: str) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"address = {address!r}: Ray is not installed; pip install 'jettison[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as error:  # Ray has many of its own
            raise JettisonError(f"no Ray cluster answers at {address!r}: {error}") from error
    try:
        remote = ray.remote(_call)
        places = {remote.remote(function, item): place for place, item in enumerate(items)}
        waiting = list(places)
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield places[done], ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, JettisonError) else JettisonError(str(error)) from error
    finally:
        if ours:
            ray.shutdown()
