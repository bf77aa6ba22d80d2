"""The offloading service between honest peers: answers, batches, bytes on the wire, TLS, the blocking form."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from threading import Event

import numpy as np
import pytest
import torch
from offloading import SOON, soon, until
from torch import nn

from benchmarks.fixtures.offload import LATENT, OUTPUTS, TOKEN, Proxy, expected, messages_of, small_module
from jettison.core.errors import JettisonError, UsageError
from jettison.graph.described_files import save_described
from jettison.offload.noised import Noised, noise_alone
from jettison.offload.service.blocking import BlockingRemoteHalf
from jettison.offload.service.channel import HEADER
from jettison.offload.service.device import RemoteHalf
from jettison.offload.service.endpoint import device_tls, worker_tls
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.service.stream import run_stream
from jettison.offload.service.worker import Worker


@pytest.fixture(scope="module")
def half():
    return Half(small_module())


class Gated:
    """A half that computes only while ``gate`` is set, and records the sizes of its batches."""

    def __init__(self, half):
        self.half, self.latent, self.outputs, self.gate, self.batches = half, half.latent, half.outputs, Event(), []
        self.digest = half.digest

    def run(self, latents):
        self.batches.append(len(latents))
        assert self.gate.wait(SOON)
        return self.half.run(latents)


class TestHalf:
    def test_shapes_are_found(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(5, 6)

            def forward(self, x):
                y = self.inner(x)
                return {"mesh": y.view(-1, 2, 3), "total": y.sum(1)}

        half = Half(Two())
        assert half.latent == 5 and half.outputs == {"mesh": (2, 3), "total": ()}
        assert {name: value.shape for name, value in half.run(np.zeros((3, 5), np.float32)).items()} == {
            "mesh": (3, 2, 3),
            "total": (3,),
        }

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(UsageError, match="--latent"):
            Half(nn.ReLU())
        with pytest.raises(UsageError, match=r"does not run on latents of shape \(1, 7\)"):
            Half(nn.Linear(5, 6), 7)
        with pytest.raises(UsageError, match="for a batch of 2"):
            Half(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Unflatten(0, (1, -1))), 4)

    def test_a_described_model(self, tmp_path, half):
        save_described(small_module(), tmp_path)
        loaded = Half.load(tmp_path)
        assert np.array_equal(loaded.run(np.ones((1, LATENT), np.float32))["output"],
                              half.run(np.ones((1, LATENT), np.float32))["output"])  # fmt: skip


class TestAnswers:
    def test_every_device_gets_its_own(self, half):
        async def work():
            async with Worker(half, TOKEN) as worker:

                async def device(seed):
                    async with RemoteHalf(worker.address, TOKEN) as remote:
                        assert await remote.connected(SOON) and remote.welcome.outputs == {"output": [OUTPUTS]}
                        for frame in range(20):
                            noised = noise_alone(LATENT, frame, seed)
                            outputs = await remote.submit(noised, soon())
                            assert np.allclose(outputs["output"], expected(half, noised), atol=1e-5)
                        return remote.counts

                counts = await asyncio.gather(*(device(seed) for seed in range(5)))
                assert all(one["remote"] == one["submitted"] == 20 for one in counts)
                return worker.counts

        counts = asyncio.run(work())
        assert counts["answered"] == counts["received"] == 100 and counts["sessions"] == 5 and not counts["faults"]

    def test_what_waits_is_computed_in_one_batch(self, half):
        async def work():
            gated = Gated(half)
            async with Worker(gated, TOKEN, limits=Limits(batch=8)) as worker:
                remotes = [RemoteHalf(worker.address, TOKEN) for _ in range(3)]
                for remote in remotes:
                    await remote.__aenter__()
                    assert await remote.connected(SOON)
                tasks = [
                    asyncio.create_task(remote.submit(noise_alone(LATENT, frame), soon()))
                    for frame in range(4)
                    for remote in remotes
                ]
                await until(lambda: worker.counts["received"] >= 12)
                gated.gate.set()
                outputs = await asyncio.gather(*tasks)
                for place, output in enumerate(outputs):
                    right = expected(half, noise_alone(LATENT, place // 3))
                    assert np.allclose(output["output"], right, atol=1e-5)
                for remote in remotes:
                    await remote.__aexit__()
            assert sum(gated.batches) == 12 and max(gated.batches) == 8 and len(gated.batches) <= 4

        asyncio.run(work())

    def test_a_full_window_stays_local_at_once(self, half):
        async def work():
            gated = Gated(half)
            async with (
                Worker(gated, TOKEN, limits=Limits(window=2)) as worker,
                RemoteHalf(worker.address, TOKEN) as remote,
            ):
                assert await remote.connected(SOON)
                waiting = [asyncio.create_task(remote.submit(noise_alone(LATENT, n), soon())) for n in range(2)]
                await until(lambda: worker.counts["received"] >= 2)
                assert await remote.submit(noise_alone(LATENT, 2), soon()) is None
                gated.gate.set()
                assert all(output is not None for output in await asyncio.gather(*waiting))
                assert remote.counts["full"] == 1 and remote.counts["remote"] == 2

        asyncio.run(work())

    def test_a_late_answer_is_dropped(self, half):
        async def work():
            gated = Gated(half)
            async with Worker(gated, TOKEN) as worker, RemoteHalf(worker.address, TOKEN) as remote:
                assert await remote.connected(SOON)
                assert await remote.submit(noise_alone(LATENT, 0), time.monotonic() + 0.2) is None
                assert await remote.submit(noise_alone(LATENT, 1), time.monotonic() - 1) is None
                assert remote.counts["late"] == 2
                second = asyncio.create_task(remote.submit(noise_alone(LATENT, 2), soon()))
                gated.gate.set()
                output = await second
                assert np.allclose(output["output"], expected(half, noise_alone(LATENT, 2)), atol=1e-5)
                assert remote.counts["dropped"] <= 1 and remote.counts["remote"] == 1

        asyncio.run(work())

    def test_the_blocking_form(self, half):
        async def serving(ready, end):
            async with Worker(half, TOKEN) as worker:
                ready.append(worker.address)
                await asyncio.to_thread(end.wait, SOON)

        async def work():
            ready, end = [], Event()
            task = asyncio.create_task(serving(ready, end))
            await until(lambda: ready)

            def device():
                with BlockingRemoteHalf(ready[0], TOKEN) as remote:
                    assert remote.connected(SOON)
                    output = remote.submit(noise_alone(LATENT, 3), soon())
                    with pytest.raises(UsageError, match="must rise"):
                        remote.submit(noise_alone(LATENT, 3), soon())
                    return output

            output = await asyncio.to_thread(device)
            end.set()
            await task
            assert np.allclose(output["output"], expected(half, noise_alone(LATENT, 3)), atol=1e-5)

        asyncio.run(work())


class TestWire:
    def test_nothing_but_noised_latents_leaves(self, half):
        """Every byte that leaves a device is accounted for: the proof, pings, and the latents that were submitted."""
        raw = [np.random.default_rng(n).standard_normal(LATENT, dtype=np.float32) for n in range(6)]
        noise = [noise_alone(LATENT, n, seed=9).latent for n in range(6)]
        stream = [Noised(a + b, n) for n, (a, b) in enumerate(zip(raw, noise, strict=True))]

        async def work():
            async with Worker(half, TOKEN) as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN, limits=Limits(ping_s=0.05)) as remote:
                    assert await remote.connected(SOON)
                    for noised in stream:
                        assert await remote.submit(noised, soon()) is not None
                    await asyncio.sleep(0.15)  # some pings
                assert len(proxy.up) == 1
                assert remote.counts["sent"] >= len(proxy.up[0]) > 0
                return bytes(proxy.up[0]), bytes(proxy.down[0])

        up, down = asyncio.run(work())
        proof, *others = messages_of(up)
        assert set(proof) == {"kind", "nonce", "proof"} and len(proof["nonce"]) == len(proof["proof"]) == 32
        requests = [message for message in others if message["kind"] == "request"]
        assert all(message == {"kind": "ping"} for message in others if message not in requests)
        assert all(set(message) == {"kind", "frame", "budget_us", "latent"} for message in requests)
        assert [(message["frame"], message["latent"]) for message in requests] == [
            (noised.frame, noised.latent.tobytes()) for noised in stream
        ]
        assert len(up) <= 400 + len(requests) * (HEADER + 4 * LATENT + 64) + len(others) * (HEADER + 16)
        for secret in (TOKEN, *(one.tobytes() for one in raw), *(one.tobytes() for one in noise)):
            assert secret not in up and secret not in down

    @pytest.mark.parametrize("value", [np.zeros(LATENT, np.float32), torch.zeros(LATENT), None, [0.0] * LATENT])
    def test_anything_else_is_refused(self, half, value):
        class Child(Noised):
            """A subclass might hold anything."""

        async def work():
            async with Worker(half, TOKEN) as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN) as remote:
                    assert await remote.connected(SOON)
                    with pytest.raises(UsageError, match="only noised latents are sent"):
                        await remote.submit(value, soon())
                    with pytest.raises(UsageError, match="only noised latents are sent"):
                        await remote.submit(Child(np.zeros(LATENT, np.float32), 0), soon())
                    with pytest.raises(UsageError, match="reads 8"):
                        await remote.submit(noise_alone(LATENT + 1, 0), soon())
                assert {message["kind"] for message in messages_of(bytes(proxy.up[0]))} <= {"proof", "ping"}

        asyncio.run(work())

    def test_only_the_loopback_listens(self, half):
        with pytest.raises(UsageError, match="--expose"):
            Worker(half, TOKEN, host="0.0.0.0")

        async def work():
            async with Worker(half, TOKEN) as worker:
                assert [one.getsockname()[0] for one in worker._server.sockets] == ["127.0.0.1"]
                with pytest.raises(JettisonError, match="cannot listen"):
                    async with Worker(half, TOKEN, port=worker.port):
                        pass

        asyncio.run(work())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(half, tmp_path):
    """The token is proved inside TLS, a device refuses another certificate, and nothing is readable on the wire."""
    for name in ("right", "wrong"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "2", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=worker", "-addext",
             "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    tls = worker_tls(tmp_path / "right.pem", tmp_path / "right.key")

    async def work():
        async with Worker(half, TOKEN, tls=tls) as worker, Proxy(worker.address) as proxy:
            noised = noise_alone(LATENT, 0)
            async with RemoteHalf(proxy.address, TOKEN, tls=device_tls(tmp_path / "right.pem")) as remote:
                assert await remote.connected(SOON), remote.trouble
                assert np.allclose((await remote.submit(noised, soon()))["output"], expected(half, noised), atol=1e-5)
            assert noised.latent.tobytes() not in bytes(proxy.up[0]) and b"request" not in bytes(proxy.up[0])
            async with RemoteHalf(worker.address, TOKEN, tls=device_tls(tmp_path / "wrong.pem")) as remote:
                await until(lambda: remote.trouble)
                assert "certificate verify failed" in remote.trouble
            async with RemoteHalf(worker.address, TOKEN) as remote:  # without TLS
                await until(lambda: remote.trouble)
                assert not remote.counts["sessions"]

    asyncio.run(work())
    assert isinstance(tls, ssl.SSLContext)


class TestStream:
    def test_every_frame_is_reported(self, half, tmp_path):
        stream, inputs = [noise_alone(LATENT, n) for n in range(12)], torch.zeros(12, LATENT)

        async def work():
            limits = Limits(window=len(stream))  # a busy machine may fall behind the clock
            async with Worker(half, TOKEN, limits=limits) as worker, RemoteHalf(worker.address, TOKEN) as remote:
                assert await remote.connected(SOON)
                return await run_stream(
                    remote, stream, half, fps=50, deadline_ms=1e3 * SOON, half=Half(small_module(1)), local=inputs
                )

        report = asyncio.run(work())
        assert report["frames"] == report["remote"] == 12 and report["local"] == report["late"] == 0
        assert report["reasons"] == {} and report["latency_ms"]["local"] is None
        assert 0 < report["latency_ms"]["round_trip"]["p50"] <= report["latency_ms"]["all"]["p99"]
        measured = report["measured"]
        assert measured["bytes_up"] >= HEADER + 4 * LATENT and measured["bytes_down"] >= HEADER + 4 * OUTPUTS
        assert measured["whole_s"] > measured["local_s"] > 0 and measured["transfer_s"] > 0

    def test_without_a_worker_all_stay_local(self, half):
        async def work():
            with socket.socket() as closed:  # a port that nobody listens on
                closed.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{closed.getsockname()[1]}"
                async with RemoteHalf(address, TOKEN) as remote:
                    assert not await remote.connected(0.05)
                    return await run_stream(remote, [noise_alone(LATENT, n) for n in range(5)], half, fps=200)

        report = asyncio.run(work())
        assert report["local"] == 5 == report["reasons"]["unconnected"] and "ConnectionRefused" in report["trouble"]
        assert "transfer_s" not in report["measured"]

    def test_models_that_do_not_fit(self, half):
        async def work(**options):
            remote = RemoteHalf("127.0.0.1:9", TOKEN)
            await run_stream(remote, options.pop("stream", [noise_alone(LATENT)]), half, fps=10, **options)

        for options, message in (
            ({"stream": []}, "no frames"),
            ({"stream": [noise_alone(3)]}, "reads 8"),
            ({"half": half}, "none"),
            ({"half": half, "local": torch.zeros(1, 3)}, r"\(1, 3\); \(1, 8\) are needed"),
            ({"half": half, "local": torch.zeros(2, LATENT)}, r"\(2, 8\); \(1, 8\) are needed"),
            ({"deadline_ms": -1}, "deadline_ms"),
        ):
            with pytest.raises(UsageError, match=message):
                asyncio.run(work(**options))


class TestProcess:
    def test_a_model_that_cannot_be_served(self, tmp_path):
        with pytest.raises(UsageError, match="no model of described modules"), WorkerProcess(tmp_path, TOKEN):
            pass

    def test_the_extra_is_named(self, tmp_path):
        (tmp_path / "msgpack.py").write_text("raise ImportError('not there')")
        code = (
            "from jettison.core.errors import UsageError\n"
            "try:\n    import jettison.offload.service.device\n"
            "except UsageError as error:\n    print(error)"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert "pip install 'jettison[offload]'" in done.stdout
