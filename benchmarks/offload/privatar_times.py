"""The times of benchmarks.offload.privatar: decoders of the paper's size with random weights, and a worker process.

The trained avatars are too small for times that say anything. Times do not depend on weights, so networks of the size
of arXiv:2604.17476 are timed: textures of 1024, 7,306 vertices, 256 + 256 latents, decoders of width 16 together.
A frame is decoded; encoders run at the sender.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.calm import calm
from benchmarks.fixtures.offload import TOKEN
from jettison.offload.avatar import AvatarConfig, AvatarVAE, Kept
from jettison.offload.noised import noise_alone
from jettison.offload.partition import RELEASED
from jettison.offload.service.blocking import BlockingRemoteHalf
from jettison.offload.service.half import Half
from jettison.offload.service.serving import WorkerProcess
from jettison.offload.split import plain, save_half

WIDTHS = {4: 2, 8: 4, 12: 7, 14: 9}  # k -> width of the offloaded decoder, of 16; as released


def network(k: int, sizes: Mapping[str, int]) -> AvatarVAE:
    """Return a network with random weights of which k components leave. sizes: other options of its configuration."""
    torch.manual_seed(0)
    away = WIDTHS[k]
    config = AvatarConfig(offloaded=sorted(RELEASED[:k]), width=16 - away, offloaded_width=away, **sizes)
    return plain(AvatarVAE(config)).eval()


def times(plan: Any, others: Mapping[str, Callable[[AvatarVAE], AvatarVAE]]) -> dict[str, Any]:
    """Time everything frame by frame, in turns, one thread each.

    plan: of ``privatar``. others: name -> what makes another network of the main one.
    Returns seconds: ``local`` and ``whole`` by k, ``others`` by name, and ``workers`` by k with bytes.
    """
    models = {k: network(k, plan.sizes) for k in plan.ks}

    def measure() -> dict[str, Any]:
        work: dict[str, Callable[[], Any]] = {}
        for k, model in models.items():
            work[f"local {k}"] = lambda model=model: decode(model, whole=False)
            work[f"whole {k}"] = lambda model=model: decode(model, whole=True)
        for name, make in others.items():
            work[f"other {name}"] = lambda model=make(models[plan.main]): decode(model, whole=True)
        taken = in_turns(work, plan.frames)
        pick = lambda kind: {
            name.removeprefix(f"{kind} "): value for name, value in taken.items() if name.startswith(kind)
        }
        workers = {str(k): on_a_worker(model, plan.frames) for k, model in models.items()}
        return {"local": pick("local"), "whole": pick("whole"), "others": pick("other"), "workers": workers}

    result, disturbance = calm(measure)
    return result | {"disturbance": disturbance}


def decode(model: AvatarVAE, whole: bool) -> Any:
    """Decode one frame on the device. whole: with the offloaded half; else that is there already, as zeros."""
    config = model.config
    kept = Kept(torch.zeros(1, config.latents), torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
    local = model.decode_local(kept)
    if whole:
        return model.combine(local, model.offloaded(torch.zeros(1, model.latents)))
    shape = 1, len(model.partition.offloaded), *local.components.shape[2:]
    return model.combine(local, torch.zeros(shape))


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


def on_a_worker(model: AvatarVAE, frames: int) -> dict[str, float]:
    """Send frames one after another to a worker process; return median seconds of the transfer and of the worker."""
    with tempfile.TemporaryDirectory() as folder:
        save_half(model, folder)
        half = Half.load(folder)
        with WorkerProcess(folder, TOKEN) as worker, BlockingRemoteHalf(worker.address, TOKEN, half=half) as link:
            if not link.connected(60):
                raise RuntimeError(f"no worker: {link.remote.trouble}")
            for number in range(frames):
                link.submit(noise_alone(half.latent, number), time.monotonic() + 10)
            trips = list(link.remote.round_trips)
            return {
                "transfer_s": statistics.median(took - worker_s for took, worker_s in trips),
                "worker_s": statistics.median(worker_s for _, worker_s in trips),
                "bytes_up": link.remote.bytes_up,
                "bytes_down": link.remote.bytes_down,
            }
