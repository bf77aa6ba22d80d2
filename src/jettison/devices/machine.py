"""This machine's figures: read bandwidth, matrix products, memory. Measured in seconds, kept in the cache folder."""

import platform
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from jettison.files import cache_folder, read_json, write_json
from jettison.progress import say

READ_BYTES = 1 << 30
MATRIX = 2048
REPEATS = 5


def measure(again: bool = False) -> dict[str, Any]:
    """A row of devices.yaml for this machine: from the cache unless ``again``.

    Bandwidth is the best of several reads of at most 1 GiB by all threads; flops that of a float32 matrix product.
    """
    file = cache_folder() / "device.json"
    host = f"{platform.node()} {_processor()}, {torch.get_num_threads()} threads"
    if file.exists() and not again:
        row = read_json(file)
        if row.pop("host", None) == host:
            return row
    say("measuring this machine (once) ...")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row = {
        "title": f"This machine: {torch.cuda.get_device_name() if device.type == 'cuda' else _processor()}",
        "bandwidth": _read_bandwidth(device),
        "share": 1.0,
        "memory": float(_memory(device)),
        "flops": _matrix_flops(device),
        "source": f"measured: best of {REPEATS}, torch {torch.__version__}, {torch.get_num_threads()} threads",
    }
    write_json(file, row | {"host": host})
    return row


def _memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[1] if device.type == "cuda" else psutil.virtual_memory().total


def _read_bandwidth(device: torch.device) -> float:
    size = min(READ_BYTES, psutil.virtual_memory().available // 4)
    data = torch.ones(size // 4, device=device)
    seconds = _best(lambda: data.sum(), device)
    return data.nbytes / seconds


def _matrix_flops(device: torch.device) -> float:
    matrix = torch.ones(MATRIX, MATRIX, device=device)
    return 2 * MATRIX**3 / _best(lambda: matrix @ matrix, device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return next(line.partition(":")[2].strip() for line in handle if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
