"""Messages of the offloading service: what they may hold."""

import msgpack
import numpy as np
import pytest

from benchmarks.fixtures.offload import damaged
from jettison.core.errors import UsageError
from jettison.offload.service.endpoint import (
    check_host,
    check_token,
    format_address,
    make_token,
    parse_address,
    read_token,
    worker_tls,
)
from jettison.offload.service.messages import (
    MOST_ANSWER,
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
    decode,
    encode,
    read_array,
    read_outputs,
)

EXAMPLES = [
    Challenge(nonce=b"n" * 32),
    Proof(nonce=b"n" * 32, proof=b"p" * 32),
    Denied(reason="full"),
    Welcome(latent=4, outputs={"output": [2, 3], "scalar": []}, digest="0" * 32, window=4),
    Request(frame=7, budget_us=100, latent=b"\0" * 16),
    Answer(frame=7, worker_us=3, outputs={"output": b"\0" * 24, "scalar": b"\0" * 4}),
    Refusal(frame=7, reason="busy"),
    Ping(),
    Pong(),
]
KINDS = [type(example) for example in EXAMPLES]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.kind)
def test_round_trip(message):
    assert decode(encode(message), *KINDS) == message
    others = [kind for kind in KINDS if kind is not type(message)]
    with pytest.raises(ProtocolError, match="another kind"):
        decode(encode(message), *others)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "request", "frame": 1, "budget_us": 1, "latent": "text"},
        {"kind": "request", "frame": 1.0, "budget_us": 1, "latent": b"1234"},
        {"kind": "request", "frame": True, "budget_us": 1, "latent": b"1234"},
        {"kind": "request", "frame": -1, "budget_us": 1, "latent": b"1234"},
        {"kind": "request", "frame": 1, "budget_us": 1, "latent": b"1234", "note": b"raw data"},
        {"kind": "challenge", "version": 2, "nonce": b"n" * 32},
        {"kind": "challenge", "nonce": b"n" * 31},
        {"kind": "welcome", "latent": 4, "outputs": {}, "window": 4},
        {"kind": "welcome", "latent": 4, "outputs": {"a b": [1]}, "window": 4},
        {"kind": "welcome", "latent": 4, "outputs": {"a": [0]}, "window": 4},
        {"kind": "welcome", "latent": 4, "outputs": {"a": [1]}, "window": 4, "dtype": "float64"},
        {"kind": "refusal", "frame": 1, "reason": "because"},
        {"kind": ["ping"]},
        {"frame": 1},
        ["ping"],
        "ping",
    ],
)
def test_what_no_schema_allows(values):
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(values), *KINDS)


def test_code_and_other_types_are_no_messages():
    for body in (b"", b"\xc1", b"\x91" * 5000 + b"\xc0", msgpack.packb(msgpack.ExtType(5, b"x")),
                 msgpack.packb(msgpack.Timestamp(1)), b"\x81\x90\x01", msgpack.packb({1: 2}),
                 b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):  # fmt: skip
        with pytest.raises(ProtocolError):
            decode(body, *KINDS)


def test_damaged_bodies_are_messages_or_refused():
    rng, outcomes = np.random.default_rng(0), []
    for number in range(4000):
        body = damaged(dict(EXAMPLES[number % len(EXAMPLES)]), rng)
        try:
            outcomes.append(type(decode(body, *KINDS)) in KINDS)
        except ProtocolError:
            outcomes.append(False)
    assert 100 < sum(outcomes) < 2000


class TestArrays:
    def test_shapes_are_those_announced(self):
        shapes = {"a": [2, 3], "b": []}
        good = {"a": np.arange(6, dtype="<f4").tobytes(), "b": np.float32(2).tobytes()}
        outputs = read_outputs(Answer(frame=0, worker_us=0, outputs=good), shapes)
        assert outputs["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and outputs["b"] == 2
        assert not outputs["a"].flags.writeable
        for wrong in ({"a": good["a"]}, good | {"c": b""}, good | {"b": b""}, good | {"a": good["a"] + b"\0" * 4}):
            with pytest.raises(ProtocolError):
                read_outputs(Answer(frame=0, worker_us=0, outputs=wrong), shapes)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_numbers_are_finite(self, value):
        with pytest.raises(ProtocolError, match="not finite"):
            read_array(np.array([1, value], "<f4").tobytes(), (2,), "it")

    def test_an_answer_has_a_limit(self):
        assert answer_bytes({"a": (4, 4)}) == 64
        with pytest.raises(ProtocolError, match="at most"):
            answer_bytes({"a": (MOST_ANSWER,)})


class TestEndpoint:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
    def test_other_hosts_must_be_asked_for(self, host):
        with pytest.raises(UsageError, match="--expose"):
            check_host(host, False)
        check_host(host, True)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
    def test_the_loopback_need_not(self, host):
        check_host(host, False)

    def test_addresses(self, tmp_path):
        assert parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
        assert parse_address("[::1]:80") == ("::1", 80) and format_address("::1", 80) == "[::1]:80"
        (tmp_path / "where").write_text("localhost:7007\n")
        assert parse_address(str(tmp_path / "where")) == ("localhost", 7007)
        for wrong in ("127.0.0.1", "a:b", "a:0", "a:65536", "a:80:80", "::1:80", "", str(tmp_path)):
            with pytest.raises(UsageError, match="HOST:PORT"):
                parse_address(wrong)

    def test_tokens(self, tmp_path):
        made = make_token(tmp_path / "new" / "token")
        assert len(made) == 64 and make_token(tmp_path / "new" / "token") == made == read_token(tmp_path / "new/token")
        assert (tmp_path / "new/token").stat().st_mode & 0o077 == 0
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["token"]
        assert make_token(tmp_path / "other") != made
        for wrong in (b"short", b"x" * 1025, b"  \n" + b" " * 50):
            with pytest.raises(UsageError, match="needed"):
                check_token(wrong)
        with pytest.raises(UsageError, match="cannot read the token"):
            read_token(tmp_path / "nowhere")

    def test_tls_needs_both_files(self, tmp_path):
        assert worker_tls(None, None) is None
        with pytest.raises(UsageError, match="both"):
            worker_tls(tmp_path / "cert.pem", None)
        with pytest.raises(UsageError, match="cannot be used"):
            worker_tls(tmp_path / "cert.pem", tmp_path / "key.pem")
