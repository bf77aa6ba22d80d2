"""The device's side for code without asyncio: the connection lives in a thread of its own."""

import asyncio
from concurrent.futures import Future
from threading import Thread
from typing import Any

from jettison.offload.noised import Noised
from jettison.offload.service.device import Output, RemoteHalf


class BlockingRemoteHalf:
    """A ``RemoteHalf`` whose methods wait. Use: ``with BlockingRemoteHalf(address, token) as remote``.

    remote: the ``RemoteHalf``, whose ``counts``, ``round_trips`` and ``trouble`` may be read.
    Arguments and errors are those of ``RemoteHalf``. The methods may be called from any thread.
    """

    def __init__(self, address: str, token: bytes, **options: Any):
        self.remote = RemoteHalf(address, token, **options)

    def __enter__(self) -> "BlockingRemoteHalf":
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="remote-half", daemon=True)
        self._thread.start()
        self._call(self.remote.__aenter__())
        return self

    def __exit__(self, *_: Any) -> None:
        self._call(self.remote.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> Any:
        future: Future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def connected(self, seconds: float) -> bool:
        """Wait for a connection, at most so long. Returns whether there is one."""
        return self._call(self.remote.connected(seconds))

    def submit(self, noised: Noised, deadline: float) -> Output | None:
        """Send a noised latent and wait for its outputs until ``deadline``; see ``RemoteHalf.submit``."""
        return self._call(self.remote.submit(noised, deadline))
