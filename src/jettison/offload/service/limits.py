"""The limits of the service: of time, of queues, of connections. Tests use shorter times."""

from dataclasses import dataclass

from jettison.core.numbers import check_number


def check_clock(fps: float, deadline_ms: float | None) -> tuple[float, float]:
    """Return the seconds between frames, and from a frame's arrival to its deadline.

    deadline_ms: milliseconds; None means the time between frames. Raises UsageError.
    """
    check_number("fps", fps, 0.001, 10_000)
    deadline_ms = 1e3 / fps if deadline_ms is None else deadline_ms
    check_number("deadline_ms", deadline_ms, 0.001, 3_600_000)
    return 1 / fps, 1e-3 * deadline_ms


@dataclass(frozen=True)
class Limits:
    """Limits of a worker or a device. Times are in seconds.

    devices: connections that a worker serves at once; strangers: connections that have not proved the token yet.
    window: frames that a device may have without an answer.
    batch: frames that a worker computes at once.
    handshake_s: from a connection to its welcome.
    message_s: within which a message that has begun must have arrived, and within which a peer must read.
    ping_s: after which a device asks whether the worker is there.
    silence_s: without any message, after which the connection counts as dead. More than twice ``ping_s``.
    answer_s: from a request to its answer, after which the connection counts as dead; a frame's deadline is shorter.
    buffer: bytes that may wait to be sent to one peer.
    first_wait_s, longest_wait_s: before the first and any later try to connect again; the wait doubles in between.
    """

    devices: int = 64
    strangers: int = 16
    window: int = 4
    batch: int = 16
    handshake_s: float = 5.0
    message_s: float = 5.0
    ping_s: float = 1.0
    silence_s: float = 5.0
    answer_s: float = 10.0
    buffer: int = 1 << 25
    first_wait_s: float = 0.05
    longest_wait_s: float = 5.0

    def __post_init__(self):
        for name, most in (("devices", 4096), ("strangers", 4096), ("window", 1024), ("batch", 4096)):
            check_number(name, getattr(self, name), 1, most, whole=True)
        for name in ("handshake_s", "message_s", "ping_s", "silence_s", "answer_s", "first_wait_s", "longest_wait_s"):
            check_number(name, getattr(self, name), 0.001, 3600.0)
        check_number("silence_s", self.silence_s, 2 * self.ping_s)
        check_number("buffer", self.buffer, 1 << 10, 1 << 32, whole=True)
