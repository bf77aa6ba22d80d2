"""The worker: it serves many devices, computes what they send in batches, and trusts none of them.

- A device must prove that it knows the token before anything else is read from it.
- Queues are bounded: a device has a window of frames, and a frame beyond it is refused with the reason ``busy``.
- The model runs in one thread. When it is free, it takes what waits, in turn from every device, up to a batch. A frame
  whose deadline has passed is refused (``late``), as is one for which the model fails (``failed``).
- A device that breaks the protocol, does not read, or falls silent loses its connection. The others do not notice.
"""

import asyncio
import contextlib
import secrets
import ssl
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jettison.core.errors import JettisonError
from jettison.offload.service.channel import LOST, Channel, check_proof
from jettison.offload.service.endpoint import LOOPBACK, check_host, check_port, check_token, format_address
from jettison.offload.service.limits import Limits
from jettison.offload.service.messages import (
    LONGEST_US,
    NONCE,
    ROOM,
    Answer,
    Challenge,
    Denied,
    Ping,
    Pong,
    Proof,
    ProtocolError,
    Refusal,
    Request,
    Welcome,
    answer_bytes,
    read_array,
)


class Runs(Protocol):
    """What a worker computes; ``half.Half`` is one. latent: d. outputs: name -> shape of the output of one frame.

    digest: of its parameters, 32 hexadecimal digits.
    """

    latent: int
    digest: str
    outputs: Mapping[str, tuple[int, ...]]

    def run(self, latents: np.ndarray) -> Mapping[str, np.ndarray]:
        """Map (batch, d) float32 to name -> (batch, ...) float32. It is called in a thread of its own."""


@dataclass(eq=False)
class Session:
    """A device that has proved the token. waiting: its requests that are not computed yet. last: its last frame."""

    channel: Channel
    waiting: deque["Waiting"] = field(default_factory=deque)
    computing: int = 0
    last: int = -1
    open: bool = True


@dataclass(frozen=True)
class Waiting:
    """A request in a queue. arrived, deadline: by the loop's clock."""

    session: Session
    frame: int
    latent: np.ndarray
    arrived: float
    deadline: float


class Worker:
    """A worker. Use: ``async with Worker(half, token) as worker``; ``worker.address`` is where it listens.

    half: what it computes.
    token: bytes that the devices know too.
    host, port: 127.0.0.1 and any free port by default. expose: allow a host that other machines can reach.
    tls: of ``endpoint.worker_tls``; None for none.
    counts: how many frames were ``received``, ``answered``, refused (``busy``, ``late``, ``failed``) or ``lost`` with
        their connection, ``batches``, and connections: ``sessions``, ``denied``, ``full``, ``faults``, ``silent``.
    Raises UsageError for a host that is not the loopback without ``expose``, a port or a token that is not valid, and
    JettisonError for outputs of more than ``messages.MOST_ANSWER`` bytes, or if it cannot listen.
    """

    def __init__(
        self,
        half: Runs,
        token: bytes,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        expose: bool = False,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ):
        check_host(host, expose)
        check_port(port)
        self.half, self.token, self.host, self.port = half, check_token(token), host, port
        self.tls, self.limits = tls, limits or Limits()
        answer_bytes(half.outputs)
        self.counts: Counter[str] = Counter()
        self.fault = ""  # the last message of an error
        self.sessions: deque[Session] = deque()  # the first is served first
        self._strangers = 0
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> "Worker":
        self._ready = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "offloaded-half")
        timeout = {} if self.tls is None else {"ssl_handshake_timeout": self.limits.handshake_s}
        try:
            self._server = await asyncio.start_server(self._accept, self.host, self.port, ssl=self.tls, **timeout)
        except OSError as error:
            self._thread.shutdown()
            raise JettisonError(f"cannot listen on {format_address(self.host, self.port)}: {error}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._computing = asyncio.create_task(self._compute())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()
        tasks = [*self._tasks, self._computing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def address(self) -> str:
        """HOST:PORT, where the worker listens."""
        return format_address(self.host, self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        channel = Channel(reader, writer, "worker", self.limits.message_s, self.limits.buffer)
        try:
            await self._serve(channel)
        except ProtocolError as error:
            self.counts["faults"] += 1
            self.fault = str(error)
        except TimeoutError:
            self.counts["silent"] += 1
        except LOST:
            pass  # the device ended the connection
        except asyncio.CancelledError:  # the worker ends; asyncio would report the error of this callback
            channel.abort()
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(asyncio.CancelledError):
                await channel.close()

    async def _serve(self, channel: Channel) -> None:
        if self._strangers >= self.limits.strangers:
            return await self._deny(channel, "full")
        self._strangers += 1
        try:
            async with asyncio.timeout(self.limits.handshake_s):
                accepted = await self._shake_hands(channel)
        finally:
            self._strangers -= 1
        if accepted:
            session = Session(channel)
            self.sessions.append(session)
            self.counts["sessions"] += 1
            try:
                while True:
                    await self._handle(session)
            finally:
                session.open = False
                self.sessions.remove(session)
                self.counts["lost"] += len(session.waiting)
                session.waiting.clear()

    async def _shake_hands(self, channel: Channel) -> bool:
        nonce = secrets.token_bytes(NONCE)
        channel.send(Challenge(nonce=nonce))
        answer = await channel.receive(Proof, seconds=self.limits.handshake_s)
        if not check_proof(self.token, nonce, answer.nonce, answer.proof):
            await self._deny(channel, "token")
            return False
        if len(self.sessions) >= self.limits.devices:
            await self._deny(channel, "full")
            return False
        channel.seal(self.token, nonce, answer.nonce)
        outputs = {name: list(shape) for name, shape in self.half.outputs.items()}
        channel.send(
            Welcome(latent=self.half.latent, outputs=outputs, digest=self.half.digest, window=self.limits.window)
        )
        channel.most = 4 * self.half.latent + ROOM
        return True

    async def _deny(self, channel: Channel, reason: str) -> None:
        self.counts["denied" if reason == "token" else "full"] += 1
        channel.send(Denied(reason=reason))
        await channel.drain()

    async def _handle(self, session: Session) -> None:
        """Receive one message of a device and put it into the queue, or answer it."""
        channel = session.channel
        message = await channel.receive(Request, Ping, seconds=self.limits.silence_s)
        if isinstance(message, Ping):
            channel.send(Pong())
            return await channel.drain()
        self.counts["received"] += 1
        if message.frame <= session.last:
            raise ProtocolError(f"frame {message.frame} after frame {session.last}: the numbers must rise")
        session.last = message.frame
        latent = read_array(message.latent, (self.half.latent,), f"the latent of frame {message.frame}")
        if len(session.waiting) + session.computing >= self.limits.window:
            self._refuse(session, message.frame, "busy")
            return await channel.drain()  # a device that floods and does not read is not read from
        now = asyncio.get_running_loop().time()
        session.waiting.append(Waiting(session, message.frame, latent, now, now + 1e-6 * message.budget_us))
        self._ready.set()

    def _refuse(self, session: Session, frame: int, reason: str) -> None:
        self.counts[reason] += 1
        with contextlib.suppress(ConnectionError):
            session.channel.send(Refusal(frame=frame, reason=reason))

    def _take(self) -> list[Waiting]:
        """Take a batch from the queues: one request of every device in turn, and refuse those that come too late."""
        batch: list[Waiting] = []
        now = asyncio.get_running_loop().time()
        while len(batch) < self.limits.batch and (queues := [one for one in self.sessions if one.waiting]):
            for session in queues:
                if len(batch) < self.limits.batch:
                    request = session.waiting.popleft()
                    if request.deadline <= now:
                        self._refuse(session, request.frame, "late")
                    else:
                        batch.append(request)
        self.sessions.rotate(-1)  # another device is first next time
        return batch

    async def _compute(self) -> None:
        """Compute batches until the worker ends."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready.wait()
            batch = self._take()
            if not batch:
                self._ready.clear()
                continue
            self.counts["batches"] += 1
            for request in batch:
                request.session.computing += 1
            try:
                outputs = await loop.run_in_executor(self._thread, self._run, np.stack([one.latent for one in batch]))
            except Exception as error:  # a model may fail in any way; the service goes on
                self.fault = f"the model failed: {type(error).__name__}: {error}"
                outputs = [None] * len(batch)
            for request, values in zip(batch, outputs, strict=True):
                self._reply(request, values, loop.time())

    def _run(self, latents: np.ndarray) -> list[dict[str, bytes] | None]:
        """Run the model in its thread. Returns the outputs of every frame as bytes, None for one that is not finite."""
        outputs = self.half.run(latents)
        shapes = {name: (len(latents), *shape) for name, shape in self.half.outputs.items()}
        if {name: value.shape for name, value in outputs.items()} != shapes:
            raise JettisonError(f"the model's outputs have other shapes than {shapes}")
        arrays = {name: np.ascontiguousarray(value, dtype="<f4") for name, value in outputs.items()}
        return [
            {name: array[row].tobytes() for name, array in arrays.items()}
            if all(np.isfinite(array[row]).all() for array in arrays.values())
            else None
            for row in range(len(latents))
        ]

    def _reply(self, request: Waiting, outputs: dict[str, bytes] | None, now: float) -> None:
        session = request.session
        session.computing -= 1
        if not session.open:
            self.counts["lost"] += 1
        elif outputs is None:
            self._refuse(session, request.frame, "failed")
        else:
            took = min(LONGEST_US, round(1e6 * (now - request.arrived)))
            try:
                session.channel.send(Answer(frame=request.frame, worker_us=took, outputs=outputs))
                self.counts["answered"] += 1
            except ConnectionError:
                self.counts["lost"] += 1
