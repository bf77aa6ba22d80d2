"""Times of programs in turns with full runs, and how the time and memory of a search grow. For an idle machine."""

import copy
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from inspect import unwrap
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from benchmarks.calm import calm
from benchmarks.diffusion.sets import GUIDANCE, STEPS, Sets
from benchmarks.fixtures.diffusion import SCHEDULE, make_model
from jettison.core.progress import set_quiet
from jettison.domains.diffusion.differentiable import Sampling
from jettison.domains.diffusion.program import Program, attach_program
from jettison.domains.diffusion.sampling import sample_classes
from jettison.domains.diffusion.search import SearchOptions, search
from jettison.runtime.latency import ratio

BATCHES, ROUNDS = (1, 32), 30  # images at once; runs of every program
SIZES = ((10, 9), (20, 9), (40, 9), (20, 3), (20, 18))  # steps T, blocks N of the searches that are measured
MEASURED = 4  # steps of a search
THREADS = 2


def latency(sets: Sets, programs: Mapping[float, Program], rounds: int = ROUNDS) -> dict[str, Any]:
    """Time full runs and programs in turns, with the sampler, for every number of images at once.

    Returns rows, "images, ratio" -> ``ratio`` with its interval, ms of both; and what disturbed the measurement.
    """
    runs: dict[Any, Callable[[int], Any]] = {}
    for name, program in {None: None, **programs}.items():
        denoiser, scheduler = copy.deepcopy(sets.denoiser), copy.deepcopy(sets.scheduler)
        if program is not None:
            attach_program(denoiser, program, scheduler)  # stays attached: the copy is for this program
        runs[name] = lambda batch, denoiser=denoiser, scheduler=scheduler: sample_classes(
            denoiser, scheduler, sets.labels(range(batch)), range(batch), steps=STEPS, guidance=sets.guidance
        )
    rows, disturbance = {}, {}
    for batch in BATCHES:
        samples, disturbance[str(batch)] = calm(lambda batch=batch: in_turns(runs, batch, rounds))
        for name in programs:
            both = {key: round(value, 3) for key, value in ratio(samples[None], samples[name]).items()}
            ms = {"full_ms": samples[None], "ms": samples[name]}
            both |= {key: round(statistics.median(taken), 2) for key, taken in ms.items()}
            rows[f"{batch}, {name}"] = both | {"samples": samples[name], "full": {"samples": samples[None]}}
    return {"rows": rows, "disturbance": disturbance}


def in_turns(runs: Mapping[Any, Callable[[int], Any]], batch: int, rounds: int) -> dict[Any, list[float]]:
    """Time every run once in a round, in an order drawn anew. Returns name -> milliseconds."""
    samples: dict[Any, list[float]] = {name: [] for name in runs}
    order, rng = list(runs), random.Random(0)
    for name in order:
        runs[name](batch)  # not measured
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name](batch)
            samples[name].append(1000 * (time.perf_counter() - start))
    return samples


def growth(sizes: Sequence[tuple[int, int]] = SIZES, width: int = 96, heads: int = 3) -> dict[str, Any]:
    """Measure a few steps of searches on DiTs of random weights, each in a process of its own.

    sizes: steps T and blocks N.
    """
    rows = []
    for steps, layers in sizes:
        for checkpointing in (True, False):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds, megabytes = pool.submit(measured_search, steps, layers, checkpointing, width, heads).result()
            rows.append([
                steps, layers, steps * layers, "yes" if checkpointing else "no", round(seconds, 3), round(megabytes)
            ])  # fmt: skip
    return {"rows": rows}


def measured_search(steps: int, layers: int, checkpointing: bool, width: int, heads: int) -> tuple[float, float]:
    """Run a short search. Returns seconds per step, and the megabytes that the process grew by at its peak."""
    set_quiet(True)
    torch.set_num_threads(THREADS)
    sampling = random_sampling(steps, layers, width, heads)
    before, taken = psutil.Process().memory_info().rss, []
    with tempfile.TemporaryDirectory() as folder:
        for number, steps_taken in enumerate(
            (1, 1, 1 + MEASURED)
        ):  # the first one warms up, the second one is the time to begin
            start = time.perf_counter()
            options = SearchOptions(steps=steps_taken, checkpointing=checkpointing)
            search(sampling, options, Path(folder) / str(number), steps_taken, save_every=1e9)
            taken.append(time.perf_counter() - start)
    return (taken[2] - taken[1]) / MEASURED, (peak_memory() - before) / 1e6


def random_sampling(steps: int, layers: int, width: int, heads: int) -> Sampling:
    """Return the sampling of a DiT of random weights, in which no weight is 0."""
    from diffusers import DDIMScheduler

    denoiser, scheduler = make_model(width, layers, heads, 10).eval(), DDIMScheduler(**SCHEDULE)
    for weight in denoiser.parameters():
        if not weight.any():
            nn.init.normal_(weight.data, std=0.02)
    run = unwrap(sample_classes)
    images = lambda indices: run(
        denoiser, scheduler, [0] * len(indices), list(map(int, indices)), steps=steps, guidance=GUIDANCE
    )
    return Sampling(denoiser, scheduler, images, 1.0, (denoiser,))


def peak_memory() -> int:
    """Return the most resident bytes of this process so far.

    The figure of ``resource.getrusage`` is not used where Linux has a better one: it begins with the parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
