"""A device among workers that die, lie, replay or fall silent: no crash, no wrong frame, and every frame counted."""

import asyncio
import time

import msgpack
import numpy as np
import psutil
import pytest
from offloading import QUICK, RETRY, SOON, right, settled, soon, until

from benchmarks.fixtures.offload import (
    DIGEST,
    LATENT,
    OUTPUTS,
    TOKEN,
    HostileWorker,
    Proxy,
    fuzz_device,
    small_module,
    write_body,
)
from jettison.graph.described_files import save_described
from jettison.offload.noised import Noised, noise_alone
from jettison.offload.service.device import RemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.messages import Answer, Ping, Welcome, encode
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.service.worker import Worker


@pytest.fixture(scope="module")
def half():
    return Half(small_module())


def welcome(**changes):
    values = {"latent": LATENT, "outputs": {"output": [OUTPUTS]}, "digest": DIGEST, "window": 4}
    return Welcome(**values | changes)


class TestWorkers:
    def test_killed_while_it_computes(self, tmp_path, half):
        """Frames stay local from the moment of the kill, and a new worker on the same port is found again."""
        save_described(small_module(), tmp_path)

        async def work():
            worker = await asyncio.to_thread(WorkerProcess(tmp_path, TOKEN).start)
            try:
                async with RemoteHalf(worker.address, TOKEN, limits=RETRY) as remote:
                    assert await remote.connected(SOON)
                    assert right((await remote.submit(noise_alone(LATENT, 0), soon()))["output"], half, 0)
                    psutil.Process(worker.process.pid).suspend()  # so that the frame is under way when the worker dies
                    flying = asyncio.create_task(remote.submit(noise_alone(LATENT, 1), soon()))
                    await until(lambda: remote._link and remote._link.waiting)
                    worker.stop()
                    assert await flying is None and remote.counts["lost"] == 1
                    await until(lambda: remote.welcome is None)
                    assert await remote.submit(noise_alone(LATENT, 2), soon()) is None
                    assert remote.counts["unconnected"] == 1
                    again = Worker(half, TOKEN, port=remote.port)
                    async with again:
                        assert await remote.connected(SOON)
                        assert right((await remote.submit(noise_alone(LATENT, 3), soon()))["output"], half, 3)
                    assert remote.counts["sessions"] == 2 and remote.counts["submitted"] == 4
            finally:
                worker.stop()

        asyncio.run(work())

    def test_slow(self, half):
        """Late answers are dropped, a full window keeps frames here, and every frame is counted once."""

        async def behave(channel, request, number):
            await asyncio.sleep(0.05)
            array = np.frombuffer(request.latent, "<f4")
            output = half.run(array[None])["output"][0]
            channel.send(Answer(frame=request.frame, worker_us=0, outputs={"output": output.tobytes()}))

        async def work():
            async with HostileWorker(behave) as worker, RemoteHalf(worker.address, TOKEN) as remote:
                assert await remote.connected(SOON)
                tasks = []
                for frame in range(30):
                    tasks.append(
                        asyncio.create_task(remote.submit(noise_alone(LATENT, frame), time.monotonic() + 0.06))
                    )
                    await asyncio.sleep(0.01)
                outputs = await asyncio.gather(*tasks)
                assert all(one is None or right(one["output"], half, n) for n, one in enumerate(outputs))
                counts = remote.counts
                assert counts["submitted"] == 30 == sum(counts[name] for name in ("remote", "late", "full"))
                assert counts["full"] and counts["late"]

        asyncio.run(work())

    @pytest.mark.parametrize(
        ("change", "trouble"),
        [
            ({"outputs": {"output": b"\0" * 4 * (OUTPUTS - 1)}}, "48 were announced"),
            ({"outputs": {"output": b"\0" * 4 * (OUTPUTS + 1)}}, "48 were announced"),
            ({"outputs": {"other": b"\0" * 4 * OUTPUTS}}, "other outputs"),
            ({"outputs": {"output": np.full(OUTPUTS, np.nan, "<f4").tobytes()}}, "not finite"),
            ({"outputs": {"output": np.full(OUTPUTS, np.inf, "<f4").tobytes()}}, "not finite"),
            ({"outputs": {"output": b"\0" * 100_000}}, "bytes; at most"),
            ({"frame": 77}, "frame 77, which waits for none"),
            ({"kind": "request"}, "another kind"),
            ({"worker_us": -1}, "worker_us"),
        ],
    )
    def test_lying(self, half, change, trouble):
        async def behave(channel, request, number):
            answer = {
                "kind": "answer",
                "frame": request.frame,
                "worker_us": 0,
                "outputs": {"output": b"\0" * 4 * OUTPUTS},
            }
            write_body(channel, msgpack.packb(answer | change))

        async def work():
            async with HostileWorker(behave) as worker, RemoteHalf(worker.address, TOKEN, limits=RETRY) as remote:
                for frame in range(3):
                    assert await remote.connected(SOON)
                    assert await remote.submit(noise_alone(LATENT, frame), soon()) is None
                assert remote.counts["faults"] == remote.counts["lost"] == 3 and trouble in remote.trouble
                assert remote._wait_s == RETRY.longest_wait_s  # a liar is asked less and less often

        asyncio.run(work())

    def test_an_answer_twice(self, half):
        async def behave(channel, request, number):
            output = half.run(np.frombuffer(request.latent, "<f4")[None])["output"][0]
            answer = Answer(frame=request.frame, worker_us=0, outputs={"output": output.tobytes()})
            channel.send(answer)
            channel.send(answer)

        async def work():
            async with HostileWorker(behave) as worker, RemoteHalf(worker.address, TOKEN, limits=RETRY) as remote:
                assert await remote.connected(SOON)
                assert right((await remote.submit(noise_alone(LATENT, 0), soon()))["output"], half, 0)
                await until(lambda: remote.counts["faults"])
                assert "frame 0, which waits for none" in remote.trouble

        asyncio.run(work())

    @pytest.mark.parametrize(
        ("welcome", "trouble"),
        [
            (welcome(), "it is of another model"),
            (welcome(latent=LATENT + 1), "from 9 numbers"),
            (welcome(outputs={"output": [OUTPUTS + 1]}), "the worker computes"),
            (welcome(outputs={"output": [1 << 24, 8]}), "the worker computes"),
            (b"\x81\xa4kind\xa7welcome", "welcome message is not valid"),
            (b"\0", "another kind"),
            (encode(Ping()), "another kind"),
        ],
    )
    def test_announcing_something_else(self, half, welcome, trouble):
        async def work():
            async with (
                HostileWorker(None, welcome) as worker,
                RemoteHalf(worker.address, TOKEN, half=half, limits=RETRY) as remote,
            ):
                await until(lambda: remote.counts["faults"])
                assert remote.welcome is None and trouble in remote.trouble
                assert await remote.submit(noise_alone(LATENT, 0), soon()) is None

        asyncio.run(work())

    def test_with_other_weights(self, half):
        """A half of the same shapes, but of another training, has another digest; a copy has the same."""

        async def work():
            async with (
                Worker(Half(small_module(1)), TOKEN) as worker,
                RemoteHalf(worker.address, TOKEN, half=half, limits=RETRY) as remote,
            ):
                await until(lambda: remote.counts["faults"] or remote.counts["sessions"])
                assert not remote.counts["sessions"] and "has other weights than" in remote.trouble

        asyncio.run(work())
        assert Half(small_module()).digest == half.digest

    def test_announcing_too_much(self):
        async def work():
            large = welcome(outputs={"output": [1 << 24, 8]})
            async with (
                HostileWorker(None, large) as worker,
                RemoteHalf(worker.address, TOKEN, limits=RETRY) as remote,
            ):
                await until(lambda: remote.counts["faults"])
                assert "at most 67,108,864" in remote.trouble

        asyncio.run(work())

    def test_that_never_answers_but_pongs(self):
        async def behave(channel, request, number):
            pass

        async def work():
            limits = Limits(ping_s=0.05, silence_s=SOON, answer_s=0.2, first_wait_s=0.01)
            async with HostileWorker(behave) as worker, RemoteHalf(worker.address, TOKEN, limits=limits) as remote:
                assert await remote.connected(SOON)
                assert await remote.submit(noise_alone(LATENT, 0), soon()) is None
                assert remote.counts["lost"] == 1

        asyncio.run(work())

    def test_that_does_not_know_the_token(self, half):
        """A worker must know the token too: a device sends it no latent."""

        async def work():
            async with Worker(half, b"another token of the tests") as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN, limits=RETRY) as remote:
                    await until(lambda: remote.trouble)
                    assert await remote.submit(noise_alone(LATENT, 0), soon()) is None
                    assert "another token" in remote.trouble and worker.counts["denied"]
                assert all(b"request" not in bytes(up) and TOKEN not in bytes(up) for up in proxy.up)
                await settled(worker)

        asyncio.run(work())

    def test_a_model_that_fails(self, half):
        class Failing:
            latent, outputs, digest = half.latent, half.outputs, half.digest

            def run(self, latents):
                outputs = half.run(latents)
                if latents[0, 0] > 100:
                    raise ValueError("too large")
                if latents[0, 0] > 10:
                    outputs["output"][:, 3] = np.nan
                return outputs if latents[0, 0] > -10 else {"output": outputs["output"][:, 1:]}

        async def work():
            async with Worker(Failing(), TOKEN) as worker, RemoteHalf(worker.address, TOKEN) as remote:
                assert await remote.connected(SOON)
                for frame, value in enumerate((1000, 50, -50)):
                    latent = np.full(LATENT, value, np.float32)
                    assert await remote.submit(Noised(latent, frame), soon()) is None
                assert right((await remote.submit(noise_alone(LATENT, 9), soon()))["output"], half, 9)
                assert remote.counts["failed"] == worker.counts["failed"] == 3 and remote.counts["sessions"] == 1

        asyncio.run(work())

    def test_half_open(self, half):
        """Nothing passes any more, and nobody says so: the device notices, and comes back when it can."""

        async def work():
            async with Worker(half, TOKEN) as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN, limits=QUICK) as remote:
                    assert await remote.connected(SOON)
                    proxy.hold = True
                    assert await remote.submit(noise_alone(LATENT, 0), soon()) is None
                    assert remote.counts["lost"] == 1 and "Timeout" in remote.trouble
                    proxy.hold = False
                    assert await remote.connected(SOON)
                    assert right((await remote.submit(noise_alone(LATENT, 1), soon()))["output"], half, 1)
                await settled(worker)

        asyncio.run(work())

    def test_replayed_bytes(self, half):
        """What a worker sent in one session is refused in another: the device has a new nonce."""

        async def work():
            async with (
                Worker(half, TOKEN) as worker,
                Proxy(worker.address) as proxy,
                RemoteHalf(proxy.address, TOKEN) as remote,
            ):
                assert await remote.connected(SOON)
                assert await remote.submit(noise_alone(LATENT, 5), soon()) is not None

            async def play(reader, writer):
                writer.write(bytes(proxy.down[0]))
                await reader.read()
                writer.close()

            async with await asyncio.start_server(play, "127.0.0.1", 0) as server:
                address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
                async with RemoteHalf(address, TOKEN, limits=RETRY) as device:
                    await until(lambda: device.counts["faults"])
                    assert "wrong tag" in device.trouble and not device.counts["sessions"]
                    assert await device.submit(noise_alone(LATENT, 5), soon()) is None

        asyncio.run(work())


def _fuzz(half, count, seed):
    """Every request of a device is answered with a damaged message."""
    counts, malformed = asyncio.run(fuzz_device(half, count, seed))
    assert not malformed
    assert counts["submitted"] == count == counts["remote"] + counts["lost"] + counts["failed"] + counts["busy"]
    assert 0 < counts["remote"] < count / 2 < counts["lost"]


def test_fuzzed_messages(half):
    _fuzz(half, 500, 0)


@pytest.mark.slow
def test_10_000_fuzzed_messages(half):
    _fuzz(half, 10_000, 1)
