"""The device's side: it sends noised latents to a worker, and takes no answer that is late, doubtful or wrong.

``RemoteHalf.submit`` returns the outputs of a frame, or None: then the device computes the frame itself. None is not
an error. It comes when there is no connection, the window is full, the worker refuses, the deadline passes, or the
connection ends. A late answer is dropped. A worker that breaks the protocol loses the connection; it is tried again
after a wait that doubles until a right answer has come. Whether finite numbers of the right shape are the right
numbers, a device cannot know.
"""

import asyncio
import contextlib
import random
import secrets
import ssl
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jettison.core.errors import UsageError, shown
from jettison.offload.noised import Noised
from jettison.offload.service.channel import LOST, Channel, prove
from jettison.offload.service.endpoint import check_token, parse_address
from jettison.offload.service.half import Half
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
    read_outputs,
)

Output = dict[str, np.ndarray]  # name -> (...) float32, of one frame
REASONS = ("unconnected", "full", "busy", "late", "failed", "lost")  # why a frame stays local


@dataclass(frozen=True)
class Sent:
    """A frame that has no answer yet. at: when it was sent, by the loop's clock."""

    answer: asyncio.Future
    at: float


@dataclass(eq=False)
class Link:
    """A connection to a worker after its welcome. waiting: frame -> what was sent."""

    channel: Channel
    welcome: Welcome
    waiting: dict[int, Sent] = field(default_factory=dict)


class RemoteHalf:
    """The offloaded half of a network, on a worker. Use: ``async with RemoteHalf(address, token) as remote``.

    address: HOST:PORT, or a file that ``jettison offload serve --announce`` wrote.
    token: bytes that the worker knows too.
    half: the half that the worker must compute; None accepts what it announces.
    tls: of ``endpoint.device_tls``; None for none.
    counts: of frames, ``submitted`` = ``remote`` + those that stayed local: ``REASONS`` and ``cancelled``. Also
        ``dropped`` (answers that came late), ``sessions``, ``faults`` (of the worker), and bytes ``sent`` and
        ``received`` by sessions that have ended.
    round_trips: (seconds from sending to the answer, seconds of these that the worker names), the newest 10,000.
    bytes_up, bytes_down: on the wire, of the last request and of the last answer, without TCP's own; 0 without one.
    trouble: why there is no connection, or why the last one ended; empty if neither has happened.
    Raises UsageError for an address or a token that is not valid.
    """

    def __init__(
        self,
        address: str,
        token: bytes,
        *,
        half: Half | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ):
        self.host, self.port = parse_address(address)
        self.token, self.tls, self.limits = check_token(token), tls, limits or Limits()
        self.half = half
        self.counts: Counter[str] = Counter()
        self.round_trips: deque[tuple[float, float]] = deque(maxlen=10_000)
        self.trouble = ""
        self._link: Link | None = None
        self._last = -1
        self.bytes_up = self.bytes_down = 0
        self._wait_s = self.limits.first_wait_s

    async def __aenter__(self) -> "RemoteHalf":
        self._connected = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep_connected())
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping

    @property
    def welcome(self) -> Welcome | None:
        """What the worker announced; None without a connection."""
        return None if self._link is None else self._link.welcome

    async def connected(self, seconds: float) -> bool:
        """Wait for a connection, at most so long. Returns whether there is one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        return self._link is not None

    async def submit(self, noised: Noised, deadline: float) -> Output | None:
        """Send a noised latent and wait for its outputs.

        deadline: when the answer must be there, in seconds of ``time.monotonic``.
        Returns the outputs, which cannot be written to, or None if the device must compute this frame itself.
        Raises UsageError for anything but ``Noised``, a frame number that does not rise, and a latent of another
        length than the worker's.
        """
        if type(noised) is not Noised:
            raise UsageError(f"only noised latents are sent, of the class Noised; this is {type(noised).__name__}")
        if noised.frame <= self._last:
            raise UsageError(f"frame = {noised.frame} after frame {self._last}: the numbers must rise")
        link, loop = self._link, asyncio.get_running_loop()
        if link is not None and noised.latent.size != link.welcome.latent:
            raise UsageError(f"latent of {noised.latent.size} numbers; the worker's half reads {link.welcome.latent}")
        self._last = noised.frame
        self.counts["submitted"] += 1
        if link is None:
            if self._keeping.done():
                self._keeping.result()  # raises what ended the task; that is a bug
            self.counts["unconnected"] += 1
            return None
        if (answer := self._send(link, noised, deadline, loop)) is None:
            return None
        try:
            async with asyncio.timeout_at(deadline):
                result = await answer
        except TimeoutError:
            self.counts["late"] += 1
            return None
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        self.counts[result if isinstance(result, str) else "remote"] += 1
        return None if isinstance(result, str) else result

    def _send(
        self, link: Link, noised: Noised, deadline: float, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future | None:
        """Send a frame. Returns the future of its answer, or None if it cannot be sent now."""
        budget = min(LONGEST_US, int(1e6 * (deadline - loop.time())))
        if budget <= 0 or len(link.waiting) >= link.welcome.window:
            self.counts["late" if budget <= 0 else "full"] += 1
            return None
        before = link.channel.sent
        try:
            link.channel.send(Request(frame=noised.frame, budget_us=budget, latent=noised.latent.tobytes()))
        except ConnectionError:
            self.counts["lost"] += 1
            return None
        self.bytes_up = link.channel.sent - before
        answer = loop.create_future()
        link.waiting[noised.frame] = Sent(answer, loop.time())
        return answer

    async def _keep_connected(self) -> None:
        """Connect, work until the connection ends, wait, and begin again."""
        while True:
            try:
                await self._work()
            except ProtocolError as error:
                self.counts["faults"] += 1
                self.trouble = str(error)
            except LOST as error:
                self.trouble = f"{type(error).__name__}: {error}".rstrip(": ")
            await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))  # many devices shall not come back at once
            self._wait_s = min(2 * self._wait_s, self.limits.longest_wait_s)

    async def _work(self) -> None:
        """Run one session."""
        async with asyncio.timeout(self.limits.handshake_s):
            name = {} if self.tls is None else {"server_hostname": self.host}
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls, **name)
        channel = Channel(reader, writer, "device", self.limits.message_s, self.limits.buffer)
        link = pinging = None
        try:
            async with asyncio.timeout(self.limits.handshake_s):
                link = Link(channel, await self._shake_hands(channel))
            self._link = link
            self.counts["sessions"] += 1
            self._connected.set()
            pinging = asyncio.create_task(self._ping(link))
            while True:
                before = channel.received
                message = await channel.receive(Answer, Refusal, Pong, seconds=self.limits.silence_s)
                self._take(link, message, channel.received - before)
        finally:
            self._link = None
            self._connected.clear()
            if pinging is not None:
                pinging.cancel()
            for sent in link.waiting.values() if link else ():
                if not sent.answer.done():
                    sent.answer.set_result("lost")
            self.counts.update(sent=channel.sent, received=channel.received)
            channel.abort()

    async def _shake_hands(self, channel: Channel) -> Welcome:
        """Prove the token, and check that the worker knows it: its welcome must have the right tag."""
        nonce = secrets.token_bytes(NONCE)
        challenge = await channel.receive(Challenge, seconds=self.limits.handshake_s)
        channel.send(Proof(nonce=nonce, proof=prove(self.token, challenge.nonce, nonce)))
        channel.seal(self.token, challenge.nonce, nonce)
        welcome = await channel.receive(Welcome, seconds=self.limits.handshake_s, unsealed=Denied)
        if isinstance(welcome, Denied):
            reason = "it knows another token" if welcome.reason == "token" else "it has too many devices"
            raise ConnectionRefusedError(f"the worker refuses this device: {reason}")
        self._check(welcome)
        channel.most = answer_bytes(welcome.outputs) + ROOM
        return welcome

    def _check(self, welcome: Welcome) -> None:
        """Raise ProtocolError if the worker computes another half than it must."""
        if (half := self.half) is None:
            return
        expected = {name: list(shape) for name, shape in half.outputs.items()}
        if (welcome.latent, welcome.outputs) != (half.latent, expected):
            raise ProtocolError(
                f"the worker computes {shown(welcome.outputs)} from {welcome.latent} numbers; "
                f"{shown(expected)} from {half.latent} is needed"
            )
        if welcome.digest != half.digest:
            raise ProtocolError(f"the worker's half has other weights than {half.where}: it is of another model")

    def _take(self, link: Link, message: Answer | Refusal | Pong, size: int) -> None:
        """Give an answer of ``size`` bytes to its frame. Raises ProtocolError for one that no frame waits for."""
        if isinstance(message, Pong):
            return
        sent = link.waiting.pop(message.frame, None)
        if sent is None:
            raise ProtocolError(f"an answer to frame {message.frame}, which waits for none")
        if isinstance(message, Refusal):
            outputs = message.reason
        else:
            try:
                outputs = read_outputs(message, link.welcome.outputs)
            except ProtocolError:
                link.waiting[message.frame] = sent  # it gets its None when the connection ends
                raise
            self._wait_s, self.bytes_down = self.limits.first_wait_s, size
            took = asyncio.get_running_loop().time() - sent.at
            self.round_trips.append((took, 1e-6 * message.worker_us))
        if sent.answer.done():  # its deadline has passed
            self.counts["dropped"] += isinstance(message, Answer)
        else:
            sent.answer.set_result(outputs)

    async def _ping(self, link: Link) -> None:
        """Ask for signs of life, and end a connection whose frames wait too long."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(*LOST):
            while True:
                await asyncio.sleep(self.limits.ping_s)
                oldest = min((sent.at for sent in link.waiting.values()), default=loop.time())
                if loop.time() - oldest > self.limits.answer_s:
                    link.channel.abort()
                    return
                link.channel.send(Ping())
