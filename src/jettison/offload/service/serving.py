"""Run a worker: in this process until it is stopped, or in a process of its own that ends with this one."""

import asyncio
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from jettison.core.errors import JettisonError
from jettison.core.files import write_text
from jettison.core.parallel import deaf_children, end_with
from jettison.offload.service.half import Half
from jettison.offload.service.worker import Worker

START_SECONDS = 300.0


def serve(
    half: Half,
    token: bytes,
    *,
    announce: str | Path | None = None,
    seconds: float | None = None,
    started: Callable[[Worker], object] = lambda worker: None,
    **options: Any,
) -> dict[str, int]:
    """Serve devices, for ``seconds`` or until an interrupt.

    announce: file that gets the worker's HOST:PORT once it listens; it is removed at the end.
    started: called with the worker once it listens.
    options: of ``Worker``.
    Returns the worker's counts. Raises as ``Worker``.
    """
    return asyncio.run(_serve(half, token, announce, seconds, started, options))


async def _serve(half, token, announce, seconds, started, options) -> dict[str, int]:
    async with Worker(half, token, **options) as worker:
        try:
            if announce is not None:
                write_text(Path(announce), f"{worker.address}\n")
            started(worker)
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
        finally:
            if announce is not None:
                Path(announce).unlink(missing_ok=True)
    return dict(worker.counts)


class WorkerProcess:
    """A worker in a process of its own. Use: ``with WorkerProcess(folder, token) as worker``, or ``start``.

    folder: of a described model. options: of ``serve``, without ``started`` and ``tls``.
    address: where it listens. process: the process; it ends with this one.
    Raises JettisonError if the worker does not start.
    """

    def __init__(self, folder: str | Path, token: bytes, **options: Any):
        self.folder, self.token, self.options = folder, token, options
        self.address = ""

    def start(self) -> "WorkerProcess":
        """Start the process and wait until the worker listens."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        args = (theirs, str(self.folder), self.token, self.options)
        with deaf_children():
            self.process = context.Process(target=_run, args=args, daemon=True)
            self.process.start()
        theirs.close()
        try:
            if not ours.poll(START_SECONDS):
                raise JettisonError(f"the worker of {self.folder} has not started within {START_SECONDS:g} s")
            answer = ours.recv()
            if isinstance(answer, Exception):
                raise answer
        except EOFError as error:
            raise JettisonError(f"the worker of {self.folder} died while it started") from error
        except BaseException:
            self.stop()
            raise
        finally:
            ours.close()
        self.address = answer
        return self

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join()

    __enter__ = start

    def __exit__(self, *_: Any) -> None:
        self.stop()


def _run(pipe: connection.Connection, folder: str, token: bytes, options: dict[str, Any]) -> None:
    end_with(parent_process().sentinel)
    import torch

    torch.set_num_threads(1)
    try:
        serve(Half.load(folder), token, started=lambda worker: pipe.send(worker.address), **options)
    except JettisonError as error:
        pipe.send(error)
