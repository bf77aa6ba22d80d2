"""The times of benchmarks.offload.privatar: the local half, the whole network, and a frame on a worker process."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.calm import calm
from benchmarks.fixtures.offload import TOKEN
from jettison.offload.avatar import HALF, AvatarVAE, load_half
from jettison.offload.noised import noise_alone
from jettison.offload.service.blocking import BlockingRemoteHalf
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.split import plain, run, run_local


def times(bench: Any, whole: Mapping[str, AvatarVAE]) -> dict[str, Any]:
    """Time everything frame by frame, in turns, one thread each.

    bench: of ``privatar``. whole: further networks that run entirely on the device.
    Returns seconds: ``local`` and ``whole`` by k, ``others`` by name, and ``workers`` by k with bytes.
    """

    def measure() -> dict[str, Any]:
        models = {k: plain(bench.experiment(k).model).eval() for k in bench.plan.ks}
        frame = bench.experiment(bench.plan.main).other[:1]
        work: dict[str, Callable[[], Any]] = {}
        for k, model in models.items():
            work[f"local {k}"] = lambda model=model: run_local(model, frame)
            work[f"whole {k}"] = lambda model=model: run(model, frame)
        work |= {f"other {name}": lambda model=model: run(model, frame) for name, model in whole.items()}
        taken = in_turns(work, bench.plan.frames)
        pick = lambda kind: {
            name.removeprefix(f"{kind} "): value for name, value in taken.items() if name.startswith(kind)
        }
        workers = {str(k): on_a_worker(bench, k) for k in bench.plan.ks}
        return {"local": pick("local"), "whole": pick("whole"), "others": pick("other"), "workers": workers}

    result, disturbance = calm(measure)
    return result | {"disturbance": disturbance}


@torch.no_grad()
def in_turns(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of every piece of work; each runs once a round."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def on_a_worker(bench: Any, k: int) -> dict[str, float]:
    """Send frames one after another to a worker process; return median seconds of the transfer and of the worker."""
    half = load_half(bench.folder(k), bench.experiment(k).model)
    with (
        WorkerProcess(bench.folder(k) / HALF, TOKEN) as worker,
        BlockingRemoteHalf(worker.address, TOKEN, half=half) as link,
    ):
        if not link.connected(60):
            raise RuntimeError(f"no worker: {link.remote.trouble}")
        for number in range(bench.plan.frames):
            link.submit(noise_alone(half.latent, number), time.monotonic() + 10)
        trips = list(link.remote.round_trips)
        return {
            "transfer_s": statistics.median(took - worker_s for took, worker_s in trips),
            "worker_s": statistics.median(worker_s for _, worker_s in trips),
            "bytes_up": link.remote.bytes_up,
            "bytes_down": link.remote.bytes_down,
        }
