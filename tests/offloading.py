"""A worker in a thread of the test, for commands that wait."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from benchmarks.fixtures.offload import TOKEN
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.worker import Worker

LIMITS = Limits(window=64)  # a busy machine may fall behind the clock of a stream


@contextmanager
def serving(folder) -> Iterator[Worker]:
    """Serve the described model of a folder during the block."""
    loop, worker = asyncio.new_event_loop(), Worker(Half.load(folder), TOKEN, limits=LIMITS)
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    wait = lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    wait(worker.__aenter__())
    try:
        yield worker
    finally:
        wait(worker.__aexit__())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
