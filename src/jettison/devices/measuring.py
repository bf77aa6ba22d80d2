"""Measure this machine: memory reads by threads and streams, matrix products, and launches of operators."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from jettison.encodings.uniform import UniformGrid
from jettison.kernels import native
from jettison.kernels.tiles import Tiling

READ_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
STREAMS = (1, 2, 4)
MATRIX = 8192  # width of the widest product tried
PACKED, SHARE_ROUNDS = 4096, 15  # rows and columns of packed weights; how often their share is measured
AHEAD = (0, 2048, 4096)  # bytes of prefetch
LONG = 0.02  # seconds: a product that takes longer is wide enough
REPEATS, ENOUGH = 5, 0.2  # at least so many runs and so many seconds, because other processes interrupt some runs
TYPES = {"fp32": (torch.float32,), "fp16": (torch.float16, torch.bfloat16), "int8": (torch.int8,)}
CACHES = Path("/sys/devices/system/cpu")


def figures(processor: str) -> dict[str, Any]:
    """Measure the figures that ``machine.measure`` returns. processor: its name, the title if there is no GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor
    return {"title": f"This machine: {name}"} | _figures(device)


def _figures(device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads()
    on = f"torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}"
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info()
        data = torch.ones(min(READ_BYTES, free // 4) // 4, device=device)
        measured, bandwidth = [], data.nbytes / _best(data.sum, device)
        cache, way = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0), "one sum"
        share = 1.0
    else:
        memory, measured = psutil.virtual_memory().total, _read_table(threads)
        best = max(measured, key=lambda row: row["bandwidth"])
        bandwidth, cache = best["bandwidth"], _last_cache(CACHES)
        share = _packed_share() if native.library() else 1.0
        way = f"threads: {best['threads']}, streams of each: {best['streams']}"
    peaks = {kind: max(_product_peak(dtype, device) for dtype in dtypes) for kind, dtypes in TYPES.items()}
    return {
        "bandwidth": bandwidth,
        "share": share,
        "memory": float(memory),
        "flops": {kind: peak for kind, peak in peaks.items() if peak},
        "cache": float(cache),
        "overhead": _launch_seconds(device),
        "sources": {
            "bandwidth": f"measured: the fastest read ({way}), torch {torch.__version__}",
            "memory": "what the driver reports" if device.type == "cuda" else "what the operating system reports",
            "flops": f"measured: the fastest square products, fp16 or bf16 under fp16; {on}",
            "cache": "what torch reports" if device.type == "cuda" else "what the kernel reports; 0 if it does not",
            "overhead": f"measured: adding two numbers, the median; {on}",
        },
        "measured": measured,
    }


def _read_table(threads: int) -> list[dict[str, float]]:
    """Measure the fastest read for every number of threads (1, 2, 4 ... all) and of streams per thread.

    The combinations take turns in rounds, so that a drift of the machine's speed affects all of them alike.
    """
    data = torch.ones(min(READ_BYTES, psutil.virtual_memory().available // 4) // 4)
    counts = sorted({threads, *(1 << power for power in range(threads.bit_length()))})
    best = {(count, streams): 0.0 for count in counts for streams in STREAMS}
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            best = {way: max(rate, _read(data, *way, pool)) for way, rate in best.items()}
    return [{"threads": count, "streams": streams, "bandwidth": rate} for (count, streams), rate in best.items()]


def _read(data: torch.Tensor, threads: int, streams: int, pool: ThreadPoolExecutor) -> float:
    """Return bytes per second of one read of ``data``.

    Every thread reads an equal part, and takes a chunk of every one of its streams in turn.
    """
    length = len(data) // (threads * streams)
    parts = data[: threads * streams * length].view(threads, streams, length)
    # by thread, the pieces in the order of reading: the first chunk of every stream, then the second one, ...
    turns = [[row for chunk in part.split(CHUNK_BYTES // 4, dim=1) for row in chunk] for part in parts]
    start = time.perf_counter()
    list(pool.map(lambda chunks: [chunk.sum() for chunk in chunks], turns))
    return parts.nbytes / (time.perf_counter() - start)


def _packed_share() -> float:
    """Return how fast the kernels read 4-bit weights, for one row of activations, relative to their fastest plain read.

    Both are measured in every round, because they drift alike; the median of the ratios counts.
    """
    tiling = Tiling.of(UniformGrid(4, 128), PACKED, PACKED)
    nbytes = math.prod(tiling.tiles_shape)
    tiles = torch.ones(max(1, READ_BYTES // 4 // nbytes), nbytes, dtype=torch.uint8)
    multiply = native.prepared(torch.ones(1, PACKED), tiling, torch.empty(1, PACKED))

    def multiply_all() -> None:
        for matrix in tiles:
            multiply(matrix.data_ptr(), nbytes)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    reads = [partial(native.read, tiles, streams, ahead) for streams in STREAMS for ahead in AHEAD]
    ratios = [min(map(seconds, reads)) / min(seconds(multiply_all) for _ in range(3)) for _ in range(SHARE_ROUNDS)]
    return min(1.0, statistics.median(ratios))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let torch use one thread in every Python thread that starts in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the fastest square product, or 0 if torch has none for the type.

    The width is doubled until a product takes longer than ``LONG`` seconds.
    """
    multiply = torch.matmul if dtype.is_floating_point else getattr(torch, "_int_mm", None)
    peak, width = 0.0, min(256, MATRIX)
    while multiply and width <= MATRIX:
        try:  # random small integers: a GPU runs faster on a matrix of equal numbers than on real data
            generator = torch.Generator(device).manual_seed(0)
            matrix = torch.randint(-8, 8, (width, width), generator=generator, device=device).to(dtype)
            seconds = _best(partial(multiply, matrix, matrix), device)
        except RuntimeError:  # torch has no product of this type, or memory is too small
            break
        peak = max(peak, 2 * width**3 / seconds)
        if seconds > LONG:
            break
        width *= 2
    return peak


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest run. The first run warms up."""
    best, runs, end = float("inf"), 0, time.perf_counter() + ENOUGH
    while runs <= REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        _wait(device)
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def _launch_seconds(device: torch.device, batches: int = 50, batch: int = 100) -> float:
    """Return the seconds of adding two numbers: the mean of a batch, the median over batches."""
    one, means = torch.ones((), device=device), []
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(batch):
            one + one
        _wait(device)
        means.append((time.perf_counter() - start) / batch)
    return statistics.median(means)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _last_cache(folder: Path) -> int:
    """Return the bytes of the last level of cache, all of its parts together; 0 if the Linux kernel does not tell.

    folder: ``/sys/devices/system/cpu``.
    """
    parts = {}
    for entry in folder.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = ((entry / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            parts[int(level), shared] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0)
        except (OSError, ValueError):  # some Linux kernels leave the size out
            continue
    last = max((level for level, _ in parts), default=0)
    return sum(size for (level, _), size in parts.items() if level == last)
