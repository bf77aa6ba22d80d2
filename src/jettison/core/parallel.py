"""A parallel ``map`` for independent work: in this process, in a pool of processes, or on a Ray cluster."""

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

MOST = 1024  # workers
Item, Result = TypeVar("Item"), TypeVar("Result")


def map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 1,
    address: str | None = None,
    what: str = "work",
) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed in parallel, in the order of the items.

    workers: processes on this machine, which share its cores; 1 means this process. With more than one, ``function``
        and the items are pickled, so ``function`` must be a function of a module and not a lambda.
    address: of a Ray cluster, which then schedules the work: ``auto``, ``ray://HOST:10001``, or ``local`` to start one
        on this machine.
    what: name of the progress bar.

    Raises UsageError for less than one worker, an address that is not valid, and if Ray is missing. A JettisonError of
    ``function`` is raised unchanged, any other exception as a JettisonError that names the item. Work that has not
    begun is then given up.
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


def check_workers(workers: int, address: str | None, name: str = "workers") -> None:
    """Check arguments of ``map``. name: what the caller calls the workers. Raises UsageError."""
    check_number(name, workers, 1, MOST, whole=True)
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
    """Run the items in a pool of spawned processes. They are not forked because torch's threads do not survive a fork.

    Workers are killed if this ends early. They end themselves if this process is killed, because this closes the other
    end of their pipe.
    """
    threads, context = max(1, len(_cores()) // workers), get_context("spawn")
    # A worker ends when ``ours`` is closed. The children that exist already are not to be killed.
    others, (theirs, ours) = set(active_children()), context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads, theirs))
    try:
        with deaf_children():
            places = {pool.submit(_call, function, item): place for place, item in enumerate(items)}
        for future in as_completed(places):
            yield places[future], future.result()
    except BrokenProcessPool as error:
        raise JettisonError(
            f"one of {workers} workers died, as happens when memory runs out; fewer workers may help"
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
    """Make processes that are spawned inside this block ignore Ctrl-C, and delay signals to this process until it ends.

    A terminal sends Ctrl-C to all processes, but only the parent handles it. A child must ignore the signal from its
    first moment, or it would print a traceback of its own. It would also print one if the parent were stopped before it
    has sent the work, so the parent handles its signals afterwards.
    """
    if not hasattr(signal, "pthread_sigmask") or current_thread() is not main_thread():
        yield
        return
    resource_tracker.ensure_running()  # if it started later, it would unblock the signals again
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers if callable(signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received[:1]:
            handlers[number](number, None)


def end_with(pipe: Any) -> None:
    """End this process as soon as the other end of ``pipe`` is closed, as happens when its owner dies."""

    def watch() -> None:
        wait([pipe])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _begin(threads: int, pipe: Any) -> None:
    """Limit a worker to its part of the cores, also if it imports torch later."""
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
        except Exception as error:  # Ray raises exceptions of many classes
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
