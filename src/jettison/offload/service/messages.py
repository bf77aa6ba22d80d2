"""The messages between a device and a worker: their schemas, and their form as bytes.

A message is one msgpack map with the key ``kind``. Every field has a type and limits, and a field that is not in the
schema is refused, so a message holds nothing else. Arrays are raw little-endian float32; their shapes are announced
once, in ``Welcome``.
"""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from jettison.core.errors import JettisonError, UsageError
from jettison.core.validation import Fields
from jettison.offload.noised import LARGEST, LAST_FRAME

try:
    import msgpack
except ImportError as error:
    raise UsageError("the offloading service needs msgpack: pip install 'jettison[offload]'") from error

VERSION = 1
NONCE, PROOF = 32, 32  # bytes
MOST_OUTPUTS, MOST_SIDES, LARGEST_SIDE = 16, 8, 1 << 24
MOST_ANSWER = 1 << 26  # bytes of the outputs of one frame
ROOM = 2048  # bytes of a message beside its arrays: names, numbers, and what msgpack adds
HANDSHAKE = 4096  # bytes of a message before the peer has proved that it knows the token
LONGEST_US = 3_600_000_000

Frame = Annotated[int, Field(ge=0, le=LAST_FRAME)]
Micros = Annotated[int, Field(ge=0, le=LONGEST_US)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,64}$")]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=LARGEST_SIDE)]], Field(max_length=MOST_SIDES)]


class ProtocolError(JettisonError):
    """The peer sent something that the protocol does not allow. The connection must be closed."""


class Challenge(Fields):
    """First message of a worker. nonce: fresh random bytes, which the device must answer with a proof."""

    kind: Literal["challenge"] = "challenge"
    version: Literal[1] = VERSION
    nonce: Annotated[bytes, Field(min_length=NONCE, max_length=NONCE)]


class Proof(Fields):
    """First message of a device. proof: HMAC of both nonces under the token; nonce: the device's own."""

    kind: Literal["proof"] = "proof"
    nonce: Annotated[bytes, Field(min_length=NONCE, max_length=NONCE)]
    proof: Annotated[bytes, Field(min_length=PROOF, max_length=PROOF)]


class Denied(Fields):
    """A worker's reason for not serving a device: the token is wrong, or there are too many devices."""

    kind: Literal["denied"] = "denied"
    reason: Literal["token", "full"]


class Welcome(Fields):
    """What a worker computes, and its limits.

    latent: d. outputs: name -> shape of the output of one frame, without the batch; all are float32.
    digest: of the parameters of its half. window: frames that a device may have without an answer.
    """

    kind: Literal["welcome"] = "welcome"
    dtype: Literal["float32"] = "float32"
    latent: Annotated[int, Field(ge=1, le=LARGEST)]
    outputs: Annotated[dict[Name, Shape], Field(min_length=1, max_length=MOST_OUTPUTS)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    window: Annotated[int, Field(ge=1, le=1024)]


class Request(Fields):
    """A noised latent. budget_us: microseconds until the device has no use for the answer."""

    kind: Literal["request"] = "request"
    frame: Frame
    budget_us: Micros
    latent: Annotated[bytes, Field(min_length=4, max_length=4 * LARGEST)]


class Answer(Fields):
    """The outputs of a frame. worker_us: microseconds from the request's arrival to the end of the computation."""

    kind: Literal["answer"] = "answer"
    frame: Frame
    worker_us: Micros
    outputs: Annotated[dict[Name, bytes], Field(min_length=1, max_length=MOST_OUTPUTS)]


class Refusal(Fields):
    """A frame that the worker does not compute: the device's window is full, it came too late, or the model failed."""

    kind: Literal["refusal"] = "refusal"
    frame: Frame
    reason: Literal["busy", "late", "failed"]


class Ping(Fields):
    """A device asks whether the worker is still there."""

    kind: Literal["ping"] = "ping"


class Pong(Fields):
    """The worker is still there."""

    kind: Literal["pong"] = "pong"


def encode(message: Fields) -> bytes:
    """Return a message as bytes."""
    return msgpack.packb(dict(message), use_bin_type=True)


def decode(body: bytes, *kinds: type[Fields]) -> Any:
    """Return the message in ``body``, an object of one of ``kinds``.

    kinds: what may come now. Raises ProtocolError for anything else, however malformed; nothing is executed.
    """
    size = len(body)
    try:
        values = msgpack.unpackb(
            body, raw=False, use_list=True, strict_map_key=True, max_str_len=64, max_bin_len=size,
            max_array_len=MOST_SIDES, max_map_len=MOST_OUTPUTS, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a message of {size} bytes is not readable: {type(error).__name__}") from error
    kind = values.get("kind") if isinstance(values, dict) else None
    for schema in kinds:
        if kind == schema.model_fields["kind"].default:
            try:
                return schema.model_validate(values)
            except ValidationError as error:
                fault = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(map(str, fault["loc"]))[:80]
                raise ProtocolError(f"a {kind} message is not valid: {place}: {fault['msg']}") from error
    expected = " or ".join(schema.model_fields["kind"].default for schema in kinds)
    raise ProtocolError(f"a message of another kind than {expected}")


def read_array(data: bytes, shape: tuple[int, ...] | list[int], what: str) -> np.ndarray:
    """Return the float32 array in ``data``, which cannot be written to.

    Raises ProtocolError if the bytes are not those of ``shape``, or a number is not finite.
    """
    if len(data) != 4 * prod(shape):
        raise ProtocolError(f"{what} has {len(data)} bytes; {4 * prod(shape)} were announced")
    array = np.frombuffer(data, dtype="<f4").reshape(shape)
    if not np.isfinite(array).all():
        raise ProtocolError(f"{what} holds numbers that are not finite")
    return array


def answer_bytes(outputs: Mapping[str, tuple[int, ...] | list[int]]) -> int:
    """Return the bytes of the arrays of one answer. Raises ProtocolError if they are more than MOST_ANSWER."""
    size = sum(4 * prod(shape) for shape in outputs.values())
    if size > MOST_ANSWER:
        raise ProtocolError(f"the outputs of a frame have {size:,} bytes; at most {MOST_ANSWER:,} are allowed")
    return size


def read_outputs(answer: Answer, shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Return the arrays of an answer. Raises ProtocolError if they are not those that ``shapes`` announced."""
    if answer.outputs.keys() != shapes.keys():
        raise ProtocolError(f"the answer to frame {answer.frame} has other outputs than {', '.join(shapes)}")
    what = lambda name: f"output {name} of frame {answer.frame}"
    return {name: read_array(answer.outputs[name], shape, what(name)) for name, shape in shapes.items()}
