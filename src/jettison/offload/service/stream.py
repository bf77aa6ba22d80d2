"""Run the device's side on a stream of frames by the clock, and report what became of every frame."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jettison.core.errors import UsageError
from jettison.core.progress import bar
from jettison.offload.noised import Noised
from jettison.offload.service.device import REASONS, RemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.limits import check_clock

TIMED = 5  # runs by which the device's own models are timed
SHARES = {"p50": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class Done:
    """A frame. remote: whether the worker computed its offloaded half. seconds: from its arrival to its end."""

    frame: int
    remote: bool
    late: bool
    seconds: float


async def run_stream(
    remote: RemoteHalf,
    stream: Sequence[Noised],
    fallback: Half,
    *,
    fps: float,
    deadline_ms: float | None = None,
    half: Half | None = None,
    local: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Let the frames of a stream arrive by the clock, offload each, and compute locally what does not come back.

    fallback: computes the offloaded half on the device, from the same noised latent.
    fps: frames per second. deadline_ms: from a frame's arrival to its deadline; None means the time between frames.
    half: the half that stays on the device and runs on every frame, on a row of ``local`` (frames, d).
    A frame waits for the worker until only the time that ``fallback`` needs is left before its deadline.

    Returns the report as JSON data: ``frames``, of these ``remote`` and ``local``, and ``late`` of both; ``reasons``
    why frames stayed local; ``latency_ms``; ``measured``, the times and bytes that ``capacity`` takes; ``trouble``.
    Raises UsageError for an empty stream, and for models that do not fit it.
    """
    period, deadline = check_clock(fps, deadline_ms)
    if not stream:
        raise UsageError("the stream has no frames")
    if fallback.latent != stream[0].latent.size:
        raise UsageError(f"latents of {stream[0].latent.size} numbers; {fallback.where} reads {fallback.latent}")
    if half is not None and (local is None or local.shape != (len(stream), half.latent)):
        shape = "none" if local is None else f"of shape {tuple(local.shape)}"
        raise UsageError(f"inputs of the local half are {shape}; {(len(stream), half.latent)} are needed")
    own = None if half is None else local.numpy()
    fallback_s = _timed(fallback, stream[0].latent)
    half_s = 0.0 if half is None else _timed(half, own[0])
    loop, before, done = asyncio.get_running_loop(), Counter(remote.counts), []
    with ThreadPoolExecutor(1, "local-half") as thread, bar("stream", len(stream)) as progress:

        async def run(place: int, arrived: float) -> None:
            last = arrived + deadline
            waiting = remote.submit(stream[place], last - fallback_s)
            if half is None:
                outputs = await waiting
            else:
                kept = loop.run_in_executor(thread, half.run, own[place : place + 1])
                outputs, _ = await asyncio.gather(waiting, kept)
            if outputs is None:
                await loop.run_in_executor(thread, fallback.run, stream[place].latent[None])
            end = loop.time()
            done.append(Done(stream[place].frame, outputs is not None, end > last, end - arrived))
            progress.advance()

        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for place in range(len(stream)):
                arrival = start + place * period
                await asyncio.sleep(max(0.0, arrival - loop.time()))
                group.create_task(run(place, arrival))
    return _report(remote, done, before, fallback_s, half_s)


def _timed(half: Half, latent: np.ndarray) -> float:
    """Return the median seconds of a run on one latent, of TIMED runs after a first one."""
    half.run(latent[None])
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        half.run(latent[None])
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _report(
    remote: RemoteHalf, done: Sequence[Done], before: Counter[str], fallback_s: float, half_s: float
) -> dict[str, Any]:
    counts = remote.counts - before
    trips = np.array(remote.round_trips).reshape(-1, 2)
    report: dict[str, Any] = {
        "frames": len(done),
        "remote": sum(one.remote for one in done),
        "local": sum(not one.remote for one in done),
        "late": sum(one.late for one in done),
        "reasons": {reason: counts[reason] for reason in REASONS if counts[reason]},
        "dropped_answers": counts["dropped"],
        "latency_ms": {
            "all": _percentiles([one.seconds for one in done]),
            "remote": _percentiles([one.seconds for one in done if one.remote]),
            "local": _percentiles([one.seconds for one in done if not one.remote]),
            "round_trip": _percentiles(trips[:, 0]),
        },
        "trouble": remote.trouble,
    }
    report["measured"] = {"local_s": half_s, "whole_s": half_s + fallback_s}
    if len(trips):
        report["measured"] |= {
            "transfer_s": float(np.median(trips[:, 0] - trips[:, 1])),
            "worker_s": float(np.median(trips[:, 1])),
            "bytes_up": remote.bytes_up,
            "bytes_down": remote.bytes_down,
        }
    return report


def _percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Return the 50, 95 and 99 % percentiles in ms; None without values."""
    if not len(seconds):
        return None
    return {name: round(1e3 * float(np.percentile(seconds, share)), 3) for name, share in SHARES.items()}
