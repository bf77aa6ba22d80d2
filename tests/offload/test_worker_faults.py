"""A worker among devices that flood, replay, lie or fall silent: no crash, no leak, and the others are served."""

import asyncio
import contextlib
import gc
from threading import Event

import numpy as np
import psutil
import pytest
from offloading import QUICK, RETRY, SOON, settled, soon, until

from benchmarks.fixtures.offload import (
    DIGEST,
    LATENT,
    TOKEN,
    Proxy,
    fuzz_worker,
    healthy,
    open_session,
    small_module,
)
from jettison.offload.noised import noise_alone
from jettison.offload.service.channel import HEADER, LOST, Channel
from jettison.offload.service.device import RemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.limits import Limits
from jettison.offload.service.messages import Answer, Denied, Refusal, Request, encode
from jettison.offload.service.worker import Worker


@pytest.fixture(scope="module")
def half():
    return Half(small_module())


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

    def test_one_that_sends_more_waits_for_its_turn(self, half):
        """With batches of one frame, two devices are served in turn, whoever was first."""

        class Recording:
            latent, outputs, digest = half.latent, half.outputs, half.digest
            gate, served = Event(), []

            def run(self, latents):
                self.served.append(int(latents[0, 0]))
                assert self.gate.wait(SOON)
                return half.run(latents)

        async def work():
            recording = Recording()
            async with Worker(recording, TOKEN, limits=Limits(batch=1, silence_s=SOON)) as worker:
                channels = [(await open_session(worker.address))[0] for _ in range(2)]
                for device, channel in enumerate(channels):
                    for frame in range(3):
                        latent = np.full(LATENT, device, np.float32).tobytes()
                        channel.send(Request(frame=frame, budget_us=10**9, latent=latent))
                    await until(lambda n=device: worker.counts["received"] == 3 * (n + 1) and recording.served == [0])
                recording.gate.set()
                for channel in channels:
                    for frame in range(3):
                        assert (await channel.receive(Answer, seconds=SOON)).frame == frame
                    channel.abort()
                assert recording.served == [0, 1] * 3

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
                channel.writer.transport.pause_reading()
                with contextlib.suppress(*LOST):  # until the worker ends the connection
                    for frame in range(60):
                        channel.send(Request(frame=frame, budget_us=10**7, latent=b"\0" * 4 * LATENT))
                        await until(lambda n=frame: worker.counts["received"] > n or not worker.sessions)
                        await until(lambda: not worker.sessions or not worker.sessions[0].computing)
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

    def test_replayed_bytes(self, half):
        """What a device sent in one session is refused in another, and a second time in the same one."""

        async def work():
            async with Worker(half, TOKEN) as worker, Proxy(worker.address) as proxy:
                async with RemoteHalf(proxy.address, TOKEN) as remote:
                    assert await remote.connected(SOON)
                    assert await remote.submit(noise_alone(LATENT, 5), soon()) is not None
                reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
                writer.write(bytes(proxy.up[0]))  # proof and all, against the worker's new nonce
                async with asyncio.timeout(SOON):
                    reply = await reader.read()
                assert b"denied" in reply and b"answer" not in reply and worker.counts["denied"] == 1
                writer.close()
                channel, _ = await open_session(worker.address)
                body = encode(Request(frame=1, budget_us=10**7, latent=noise_alone(LATENT).latent.tobytes()))
                message = len(body).to_bytes(4, "big") + channel._tag("device", body) + body
                channel.writer.write(message + message)
                await until(lambda: worker.counts["faults"])
                assert "wrong tag" in worker.fault
                channel.abort()

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


def test_a_message_sent_back_has_a_wrong_tag():
    """Each direction has its own key, so a peer's own message is none of the other side."""
    channel = Channel(None, None, "device", 1, 1 << 10)
    channel.seal(TOKEN, b"w" * 32, b"d" * 32)
    assert channel._tag("device", b"body") != channel._tag("worker", b"body")


def _message(message) -> bytes:
    body = encode(message)
    return len(body).to_bytes(4, "big") + bytes(HEADER - 4) + body


def _fuzz(half, count, seed):
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


def test_fuzzed_messages(half):
    _fuzz(half, 1500, 0)


@pytest.mark.slow
def test_40_000_fuzzed_messages(half):
    _fuzz(half, 40_000, 1)
