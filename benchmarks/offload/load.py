"""Offloading under load: eight devices at 30 Hz against one worker process, and 50,000 fuzzed messages.

    python -m benchmarks.offload.load --parts load   # one part, which benchmarks.offload.privatar then uses
    python -m benchmarks.offload.load --check        # the load for five seconds, and 2,000 fuzzed messages

A part is computed once and kept in runs/privatar; remove its file to have it computed again. The parts need:

    load     a minute        nothing else may run; a disturbed run is repeated, three times at most
    fuzz     some minutes    on any machine, however busy

Load: every frame of every device is counted once, as remote or as local with its reason, and every remote answer is
compared with the model's own output. All traffic is on the loopback.
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from benchmarks.calm import calm
from benchmarks.fixtures.offload import (
    LATENT,
    TOKEN,
    expected,
    fuzz_device,
    fuzz_worker,
    healthy,
    small_module,
)
from benchmarks.witness import cell, claim
from jettison.core.progress import set_quiet
from jettison.graph.described_files import save_described
from jettison.offload.noised import noise_alone
from jettison.offload.service.device import REASONS, RemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.service.worker import Worker

NAME = "privatar"
DEVICES, FPS, SECONDS = 8, 30, 30
WORKER_MESSAGES, DEVICE_MESSAGES = 40_000, 10_000


async def device(number: int, address: str, half: Half, seconds: float, start: float) -> dict[str, Any]:
    """Send a frame every 1/FPS seconds, with a deadline at the next one, and check every answer."""
    frames, wrong, latencies = int(seconds * FPS), 0, []
    async with RemoteHalf(address, TOKEN) as remote:
        if not await remote.connected(10):
            raise RuntimeError(f"device {number} has no connection: {remote.trouble}")
        phase = number / (DEVICES * FPS)  # the devices' clocks are not in step
        for frame in range(frames):
            arrival = start + phase + frame / FPS
            await asyncio.sleep(max(0.0, arrival - time.monotonic()))
            noised = noise_alone(LATENT, frame, seed=number)
            outputs = await remote.submit(noised, arrival + 1 / FPS)
            if outputs is not None:
                latencies.append(1e3 * (time.monotonic() - arrival))
                wrong += not np.allclose(outputs["output"], expected(half, noised), atol=1e-5)
        return {"frames": frames, "wrong": wrong, "counts": dict(remote.counts), "samples": latencies}


def load(seconds: float = SECONDS) -> dict[str, Any]:
    """Run all devices in this process against a worker in another."""
    half = Half(small_module())

    async def work(address: str) -> list[dict[str, Any]]:
        start = time.monotonic() + 1
        return await asyncio.gather(*(device(n, address, half, seconds, start) for n in range(DEVICES)))

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            save_described(small_module(), folder)
            with WorkerProcess(folder, TOKEN) as worker:
                devices = asyncio.run(work(worker.address))
        counts = sum((Counter(one["counts"]) for one in devices), Counter())
        frames = sum(one["frames"] for one in devices)
        return {
            "frames": frames,
            "remote": counts["remote"],
            "local": {reason: counts[reason] for reason in REASONS},
            "unaccounted": frames - counts["remote"] - sum(counts[reason] for reason in REASONS),
            "wrong": sum(one["wrong"] for one in devices),
            "least_share": min(one["counts"].get("remote", 0) / one["frames"] for one in devices),
            "latency_ms": {"samples": [value for one in devices for value in one["samples"]]},
        }

    result, disturbance = calm(run)
    return result | {"disturbance": disturbance}


def fuzz(to_worker: int = WORKER_MESSAGES, to_device: int = DEVICE_MESSAGES) -> dict[str, Any]:
    """Send damaged messages to a worker, then let a worker answer a device with damaged messages."""
    half = Half(small_module())
    return {
        "worker": asyncio.run(fuzzed_worker(half, to_worker)),
        "device": asyncio.run(fuzzed_device(half, to_device)),
    }


async def fuzzed_worker(half: Half, count: int) -> dict[str, Any]:
    """A healthy device is served after every 250 messages; at the end no connection is left."""
    async with Worker(half, TOKEN) as worker:
        frames = iter(range(count))
        await fuzz_worker(worker.address, count, 1, lambda: healthy(worker, half, next(frames)))
        await healthy(worker, half, count)
        for _ in range(1000):
            if not worker._tasks:
                break
            await asyncio.sleep(0.01)
        return {"messages": count, "counts": dict(worker.counts), "connections_left": len(worker._tasks)}


async def fuzzed_device(half: Half, count: int) -> dict[str, Any]:
    """Every frame ends as remote, with finite numbers of the right shape, or as local."""
    counts, malformed = await fuzz_device(half, count, 1)
    unaccounted = count - counts["remote"] - sum(counts[reason] for reason in REASONS)
    return {"messages": count, "counts": dict(counts), "malformed": malformed, "unaccounted": unaccounted}


def claims(loaded: dict[str, Any], fuzzed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the claims of both parts."""
    messages = fuzzed["worker"]["messages"] + fuzzed["device"]["messages"]
    local = sum(loaded["local"].values())
    served = loaded["unaccounted"] == loaded["wrong"] == 0 and loaded["least_share"] >= 0.99
    bad = fuzzed["device"]["malformed"] + fuzzed["device"]["unaccounted"] + fuzzed["worker"]["connections_left"]
    return [
        claim("devices_30hz_held", DEVICES if served else 0, "devices", "higher", DEVICES,
              f"{loaded['remote']} of {loaded['frames']} frames remote, {local} local; 99 % of each device needed"),
        claim("frames_lost_silently", loaded["unaccounted"], "frames", "equal", 0),
        claim("wrong_frames", loaded["wrong"], "frames", "equal", 0),
        claim("fuzzed_messages", messages, "messages", "higher", 50_000, "no crash; healthy devices served meanwhile"),
        claim("fuzzed_faults_left", bad, "", "equal", 0, "frames unaccounted or malformed, connections left"),
    ]  # fmt: skip


PARTS = {"load": load, "fuzz": fuzz}


def main() -> None:
    """Compute parts, or check a smaller run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    set_quiet(True)
    torch.set_num_threads(1)
    for name in options.parts:
        cell(NAME, name, PARTS[name])
    if options.check:
        loaded, fuzzed = load(5), fuzz(1500, 500)
        wrong = [
            entry["id"] for entry in claims(loaded, fuzzed) if not entry["holds"] and entry["id"] != "fuzzed_messages"
        ]
        print(loaded["frames"], "frames;", f"not as claimed: {', '.join(wrong)}" if wrong else "as claimed")
        raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
