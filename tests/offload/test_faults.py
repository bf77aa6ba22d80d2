"""The offloading service among hostile and broken peers: no crash, no leak, no wrong frame."""

import asyncio
import gc
import time

import msgpack
import numpy as np
import psutil
import pytest

from benchmarks.fixtures.offload import (
    DIGEST,
    LATENT,
    OUTPUTS,
    TOKEN,
    HostileWorker,
    Proxy,
    damaged,
    expected,
    fuzz_worker,
    healthy,
    open_session,
    small_module,
    write_body,
)
from jettison.graph.described_files import save_described
from jettison.offload.noised import noise_alone
from jettison.offload.service.channel import HEADER, LOST
from jettison.offload.service.device import RemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.messages import (
    Answer,
    Denied,
    Ping,
    Refusal,
    Request,
    Welcome,
    encode,
)
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.service.worker import Worker

SOON = 60.0
QUICK = Limits(handshake_s=1, message_s=1, ping_s=0.1, silence_s=0.5, answer_s=1, first_wait_s=0.01, longest_wait_s=0.1)
RETRY = Limits(first_wait_s=0.005, longest_wait_s=0.02)
soon = lambda: time.monotonic() + SOON


@pytest.fixture(scope="module")
def half():
    return Half(small_module())


async def until(condition, what="nothing happened"):
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


async def settled(worker):
    """Wait until a worker has no connection left, and check that nothing of them remains."""
    await until(lambda: not worker._tasks)
    assert not worker.sessions and worker._strangers == 0


def right(answer: np.ndarray, half, frame: int) -> bool:
    return np.allclose(answer, expected(half, noise_alone(LATENT, frame)), atol=1e-5)


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

        from jettison.offload.noised import Noised

        async def work():
            async with Worker(Failing(), TOKEN) as worker, RemoteHalf(worker.address, TOKEN) as remote:
                assert await remote.connected(SOON)
                for frame, value in enumerate((1000, 50, -50)):
                    latent = np.full(LATENT, value, np.float32)
                    assert await remote.submit(Noised(latent, frame), soon()) is None
                assert right((await remote.submit(noise_alone(LATENT, 9), soon()))["output"], half, 9)
                assert remote.counts["failed"] == worker.counts["failed"] == 3 and remote.counts["sessions"] == 1

        asyncio.run(work())


class TestNetwork:
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

    def test_a_device_that_fell_silent_is_let_go(self, half):
        async def work():
            async with Worker(half, TOKEN, limits=QUICK) as worker:
                channel, _ = await open_session(worker.address)
                await settled(worker)
                assert worker.counts["silent"] == worker.counts["sessions"] == 1
                channel.abort()

        asyncio.run(work())

    @pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\x40" + b"\0" * 20])
    def test_a_silent_stranger_is_sent_away(self, half, sent):
        async def work():
            async with Worker(half, TOKEN, limits=QUICK) as worker:
                reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
                writer.write(sent)
                async with asyncio.timeout(SOON):
                    assert b"challenge" in await reader.read()  # to its end
                assert worker.counts["silent"] == 1
                writer.close()
                await settled(worker)

        asyncio.run(work())

    @pytest.mark.parametrize("side", ["up", "down"])
    def test_replayed_bytes(self, half, side):
        """What was recorded in one session is refused in another, and a second time in the same one."""

        async def work():
            async with Worker(half, TOKEN) as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN) as remote:
                    assert await remote.connected(SOON)
                    assert await remote.submit(noise_alone(LATENT, 5), soon()) is not None
                up, down = bytes(proxy.up[0]), bytes(proxy.down[0])
                if side == "up":  # the recorded device, proof and all, against the worker's new nonce
                    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
                    writer.write(up)
                    async with asyncio.timeout(SOON):
                        reply = await reader.read()
                    assert b"denied" in reply and b"answer" not in reply and worker.counts["denied"] == 1
                    writer.close()
                    channel, _ = await open_session(worker.address)  # and a request twice in a session
                    body = encode(Request(frame=1, budget_us=10**7, latent=noise_alone(LATENT).latent.tobytes()))
                    message = len(body).to_bytes(4, "big") + channel._tag("device", body) + body
                    channel.writer.write(message + message)
                    await until(lambda: worker.counts["faults"])
                    assert "wrong tag" in worker.fault
                    channel.abort()
                else:  # the recorded worker, against the device's new nonce

                    async def play(reader, writer):
                        writer.write(down)
                        await reader.read()
                        writer.close()

                    async with await asyncio.start_server(play, "127.0.0.1", 0) as server:
                        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
                        async with RemoteHalf(address, TOKEN, limits=RETRY) as device:
                            await until(lambda: device.counts["faults"])
                            assert "wrong tag" in device.trouble and not device.counts["sessions"]
                            assert await device.submit(noise_alone(LATENT, 5), soon()) is None

        asyncio.run(work())

    def test_a_changed_byte(self, half):
        async def work():
            async with Worker(half, TOKEN) as worker:
                channel, _ = await open_session(worker.address)
                body = encode(Request(frame=1, budget_us=10**7, latent=noise_alone(LATENT).latent.tobytes()))
                tag = channel._tag("device", body)
                channel.writer.write(len(body).to_bytes(4, "big") + tag + body[:-1] + bytes([body[-1] ^ 1]))
                await until(lambda: worker.counts["faults"])
                assert "wrong tag" in worker.fault and not worker.counts["received"]
                channel.abort()

        asyncio.run(work())


class TestDevices:
    def test_a_frame_number_that_does_not_rise(self, half):
        async def work():
            async with Worker(half, TOKEN) as worker:
                channel, _ = await open_session(worker.address)
                for frame in (4, 4):
                    channel.send(Request(frame=frame, budget_us=10**7, latent=noise_alone(LATENT).latent.tobytes()))
                await until(lambda: worker.counts["faults"])
                assert worker.fault.startswith("frame 4 after frame 4")
                channel.abort()
                await settled(worker)

        asyncio.run(work())

    def test_a_flood_is_refused_and_the_others_are_served(self, half):
        async def work():
            async with Worker(half, TOKEN, limits=Limits(window=2)) as worker:
                channel, _ = await open_session(worker.address)
                latent = noise_alone(LATENT).latent.tobytes()
                for frame in range(500):
                    channel.send(Request(frame=frame, budget_us=10**7, latent=latent))
                await healthy(worker, half)
                outcomes = []
                for _ in range(500):
                    message = await channel.receive(Answer, Refusal, seconds=SOON)
                    outcomes.append(message.reason if isinstance(message, Refusal) else "answered")
                assert outcomes.count("busy") + outcomes.count("answered") == 500 and outcomes.count("busy") > 100
                assert worker.counts["busy"] == outcomes.count("busy")
                channel.abort()
                await settled(worker)

        asyncio.run(work())

    def test_one_that_does_not_read_is_cut_off(self):
        """Its answers would fill the worker's memory."""

        class Large:
            latent, outputs, digest = LATENT, {"output": (1 << 18,)}, DIGEST  # 1 MB a frame

            def run(self, latents):
                return {"output": np.zeros((len(latents), 1 << 18), np.float32)}

        async def work():
            limits = Limits(buffer=1 << 20, window=4, message_s=1)
            async with Worker(Large(), TOKEN, limits=limits) as worker:
                channel, _ = await open_session(worker.address)
                for frame in range(60):
                    with_room = channel.writer.is_closing()
                    if with_room:
                        break
                    channel.writer.transport.pause_reading() if frame == 0 else None
                    try:
                        channel.send(Request(frame=frame, budget_us=10**7, latent=b"\0" * 4 * LATENT))
                    except LOST:
                        break
                    await until(lambda n=frame: worker.counts["received"] > n or not worker.sessions)
                    await until(lambda: not worker.sessions or not worker.sessions[0].computing)
                    if not worker.sessions:
                        break
                assert not worker.sessions
                channel.abort()
                await settled(worker)

        asyncio.run(work())

    def test_too_many(self, half):
        async def work():
            limits = Limits(devices=2, strangers=3)
            async with Worker(half, TOKEN, limits=limits) as worker:
                devices = [await open_session(worker.address) for _ in range(2)]
                async with RemoteHalf(worker.address, TOKEN, limits=RETRY) as remote:
                    await until(lambda: "too many devices" in remote.trouble)
                    devices.pop()[0].abort()
                    assert await remote.connected(SOON)
                devices.pop()[0].abort()
                await settled(worker)
                strangers = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in range(3)]
                await until(lambda: worker._strangers == 3)
                reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
                async with asyncio.timeout(SOON):
                    assert await reader.read() == _message(Denied(reason="full"))
                for _, one in [*strangers, (reader, writer)]:
                    one.close()
                await settled(worker)

        asyncio.run(work())

    def test_late_requests_are_not_computed(self, half):
        async def work():
            async with Worker(half, TOKEN) as worker:
                channel, _ = await open_session(worker.address)
                channel.send(Request(frame=0, budget_us=0, latent=noise_alone(LATENT).latent.tobytes()))
                assert await channel.receive(Refusal, seconds=SOON) == Refusal(frame=0, reason="late")
                assert worker.counts["late"] == 1 and not worker.counts["batches"]
                channel.abort()

        asyncio.run(work())

    def test_a_device_that_leaves_loses_its_frames_only(self, half):
        async def work():
            async with Worker(half, TOKEN) as worker:
                for _ in range(20):
                    channel, _ = await open_session(worker.address)
                    channel.send(Request(frame=0, budget_us=10**7, latent=noise_alone(LATENT).latent.tobytes()))
                    channel.abort()
                await healthy(worker, half)
                await settled(worker)
                assert not worker.counts["faults"]

        asyncio.run(work())


def _message(message) -> bytes:
    body = encode(message)
    return len(body).to_bytes(4, "big") + bytes(HEADER - 4) + body


def _fuzz_worker(half, count, seed):
    async def work():
        async with Worker(half, TOKEN) as worker:
            frame = iter(range(10**6))
            await healthy(worker, half)
            process = psutil.Process()
            gc.collect()
            before = process.memory_info().rss
            ends = await fuzz_worker(worker.address, count, seed, lambda: healthy(worker, half, next(frame)))
            await settled(worker)
            gc.collect()
            assert process.memory_info().rss - before < 64 << 20
            assert len(asyncio.all_tasks()) <= 3  # this one, and the worker's
            return ends, worker.counts

    ends, counts = asyncio.run(work())
    assert ends.total() + counts["faults"] >= count  # a message that met a closed connection ended it by a fault
    assert counts["faults"] > count / 4 and counts["denied"] and counts["answered"]


def _fuzz_device(half, count, seed):
    """Every request of a device is answered with a damaged message."""
    rng = np.random.default_rng(seed)

    async def behave(channel, request, number):
        outputs = {"output": half.run(np.frombuffer(request.latent, "<f4")[None])["output"][0].tobytes()}
        message = Answer(frame=request.frame, worker_us=0, outputs=outputs)
        write_body(channel, damaged(dict(message), rng), rng)
        channel.writer.write_eof()

    async def work():
        limits = Limits(first_wait_s=0.001, longest_wait_s=0.002)
        async with HostileWorker(behave) as worker, RemoteHalf(worker.address, TOKEN, limits=limits) as remote:
            for frame in range(count):
                assert await remote.connected(SOON)
                session = remote.counts["sessions"]
                outputs = await remote.submit(noise_alone(LATENT, frame), soon())
                if outputs is not None:
                    assert outputs["output"].shape == (OUTPUTS,) and np.isfinite(outputs["output"]).all()
                await until(lambda now=session: remote.welcome is None or remote.counts["sessions"] > now)
            counts = remote.counts
        assert counts["submitted"] == count == counts["remote"] + counts["lost"] + counts["failed"] + counts["busy"]
        assert 0 < counts["remote"] < count / 2 < counts["lost"]

    asyncio.run(work())


def test_fuzzed_messages_to_a_worker(half):
    _fuzz_worker(half, 1500, 0)


def test_fuzzed_messages_to_a_device(half):
    _fuzz_device(half, 500, 0)


@pytest.mark.slow
def test_50_000_fuzzed_messages(half):
    _fuzz_worker(half, 40_000, 1)
    _fuzz_device(half, 10_000, 1)
