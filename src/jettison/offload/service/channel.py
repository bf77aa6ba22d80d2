"""A channel: messages over a TCP stream, with limits of size and time, and tags that need the token.

A message is its length (4 bytes, big-endian), a tag (16 bytes) and its body. The tags of the handshake are zeros. After
it, a tag is keyed BLAKE2b over the message's number and the body. The keys come from the token and from both nonces,
one per direction. So a message that is changed, left out, repeated, or taken from another session is refused.

The token itself never crosses the wire. The design is ours; the paper (arXiv:2604.17476) describes no protocol.
"""

import asyncio
import contextlib
import hashlib
import hmac
from typing import Any

from jettison.core.validation import Fields
from jettison.offload.service.messages import HANDSHAKE, ProtocolError, decode, encode

TAG = 16  # bytes
HEADER = 4 + TAG
LABELS = {"device": b"jettison offload 1: device", "worker": b"jettison offload 1: worker"}
LOST = (OSError, EOFError, TimeoutError)  # how a connection ends; ssl's errors are OSErrors


def prove(token: bytes, worker_nonce: bytes, device_nonce: bytes) -> bytes:
    """Return the proof that a device knows the token: HMAC-SHA256 over a label and both nonces."""
    return hmac.digest(token, b"jettison offload 1: proof" + worker_nonce + device_nonce, "sha256")


def check_proof(token: bytes, worker_nonce: bytes, device_nonce: bytes, proof: bytes) -> bool:
    """Return whether a proof is that of the token, in constant time."""
    return hmac.compare_digest(prove(token, worker_nonce, device_nonce), proof)


class Channel:
    """One end of a connection.

    own: which end this is, ``device`` or ``worker``.
    message_s: seconds within which a message that has begun must have arrived.
    buffer: bytes that may wait to be sent; a peer that reads no faster is cut off.
    most: bytes of a message that may be received; it grows when the peer is known.
    sent, received: bytes on the wire so far.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, own: str, message_s: float, buffer: int
    ):
        self.reader, self.writer, self.own = reader, writer, own
        self.message_s, self.buffer, self.most = message_s, buffer, HANDSHAKE
        self.sent = self.received = 0
        self._keys: dict[str, bytes] = {}
        self._numbers = {"device": 0, "worker": 0}

    def seal(self, token: bytes, worker_nonce: bytes, device_nonce: bytes) -> None:
        """Tag all messages from now on."""
        for side, label in LABELS.items():
            self._keys[side] = hmac.digest(token, label + worker_nonce + device_nonce, "sha256")

    def _tag(self, side: str, body: bytes) -> bytes:
        if not self._keys:
            return bytes(TAG)
        number, self._numbers[side] = self._numbers[side], self._numbers[side] + 1
        tag = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=TAG, key=self._keys[side])
        tag.update(body)
        return tag.digest()

    def send(self, message: Fields) -> None:
        """Send a message without waiting. Raises ConnectionError if the connection is closing or its buffer is full."""
        if self.writer.is_closing():
            raise ConnectionError("the connection is closing")
        if self.writer.transport.get_write_buffer_size() > self.buffer:
            self.abort()
            raise ConnectionError("the peer does not read what is sent to it")
        body = encode(message)
        self.writer.write(len(body).to_bytes(4, "big") + self._tag(self.own, body) + body)
        self.sent += HEADER + len(body)

    async def drain(self) -> None:
        """Wait until the peer has read enough. Raises TimeoutError if it does not within ``message_s``."""
        async with asyncio.timeout(self.message_s):
            await self.writer.drain()

    async def receive(self, *kinds: type[Fields], seconds: float, unsealed: type[Fields] | None = None) -> Any:
        """Wait for a message.

        kinds: what may come now.
        seconds: how long to wait for its first byte.
        unsealed: what may come instead without a tag, from a peer that has no keys.
        Raises ProtocolError for a message that is not allowed, TimeoutError, and EOFError or OSError when the
        connection ends.
        """
        async with asyncio.timeout(seconds):
            first = await self.reader.readexactly(1)
        async with asyncio.timeout(self.message_s):
            header = first + await self.reader.readexactly(HEADER - 1)
            size = int.from_bytes(header[:4], "big")
            if not 0 < size <= self.most:
                raise ProtocolError(f"a message of {size:,} bytes; at most {self.most:,} are read")
            body = await self.reader.readexactly(size)
        if unsealed is not None and header[4:] == bytes(TAG):
            return decode(body, unsealed)
        other = "worker" if self.own == "device" else "device"
        if not hmac.compare_digest(self._tag(other, body), header[4:]):
            raise ProtocolError("a message with a wrong tag: it was changed, repeated, or made without the token")
        self.received += HEADER + size
        return decode(body, *kinds)

    def abort(self) -> None:
        """End the connection at once, without sending what waits."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Send what waits, at most for ``message_s``, and end the connection."""
        self.writer.close()
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(self.message_s):
                await self.writer.wait_closed()
                return
        self.abort()
