"""A worker in a thread of the test, for commands that wait; and what tests of the service wait for."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from threading import Thread

import numpy as np

from benchmarks.fixtures.offload import LATENT, TOKEN, expected
from jettison.offload.noised import noise_alone
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.worker import Worker

SOON = 60.0  # seconds; tests wait for events, and this long only if something is broken
QUICK = Limits(handshake_s=1, message_s=1, ping_s=0.1, silence_s=0.5, answer_s=1, first_wait_s=0.01, longest_wait_s=0.1)
RETRY = Limits(first_wait_s=0.005, longest_wait_s=0.02)
LIMITS = Limits(window=64)  # a busy machine may fall behind the clock of a stream


@contextmanager
def in_a_thread(entered: AbstractAsyncContextManager) -> Iterator:
    """Enter an asynchronous context in a loop of its own thread during the block. Yields what it gives."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    wait = lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    given = wait(entered.__aenter__())
    try:
        yield given
    finally:
        wait(entered.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serving(folder) -> AbstractContextManager[Worker]:
    """Serve the described model of a folder during the block."""
    return in_a_thread(Worker(Half.load(folder), TOKEN, limits=LIMITS))


def soon() -> float:
    """Return a deadline for what comes at once, by ``time.monotonic``."""
    return time.monotonic() + SOON


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition. Raises AssertionError if it does not come true within SOON."""
    end = soon()
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        await asyncio.sleep(0.005)


async def settled(worker: Worker) -> None:
    """Wait until a worker has no connection left. Raises AssertionError if anything of them remains."""
    await until(lambda: not worker._tasks)
    assert not worker.sessions and worker._strangers == 0


def right(answer: np.ndarray, half: Half, frame: int) -> bool:
    """Return whether an output is that of ``noise_alone`` for this frame."""
    return np.allclose(answer, expected(half, noise_alone(LATENT, frame)), atol=1e-5)
