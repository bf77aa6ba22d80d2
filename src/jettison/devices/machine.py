"""The figures of this machine: measured once, then read from the cache, without importing torch."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from jettison.core.caches import cache_folder
from jettison.core.errors import JettisonError
from jettison.core.kept import read_record, write_record
from jettison.core.progress import say

# Environment variables that set torch's threads and the visible GPUs.
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
LAYOUT = 4  # version of the cached file's layout; a file of another version is ignored, and the machine measured again


def measure(again: bool = False) -> dict[str, Any]:
    """Return this machine's figures as a row of devices.yaml. Measuring takes seconds.

    again: measure even if the cache has the figures.
    The fields of the row:
    bandwidth: the best of ``measured``, a table of {threads, streams, bandwidth} (empty on a GPU). Every thread reads a
        part of 1 GiB as one stream, or as several streams in turn.
    share: the part of that bandwidth at which products with packed weights read them.
    flops: the fastest square products in float32, in float16 or bfloat16, and in int8 where torch has it.
    overhead: the median time of adding two numbers.
    """
    file, key = cache_folder() / "device.json", {"layout": LAYOUT, "host": _host()}
    cached, threads = _kept(file, key)
    # torch's number of threads changes the figures. If torch is not imported, the cached number is accepted.
    if cached and not again and threads == _torch_threads(threads):
        return cached
    say("measuring this machine (once) ...")
    from jettison.devices.measuring import figures  # imports torch

    row = figures(_processor())
    # Cached figures for another number of threads are not replaced: this process changed torch's threads for itself,
    # and the cache serves all processes.
    if again or not cached:
        try:
            write_record(file, row | key | {"threads": _torch_threads()})
        except JettisonError as error:
            say(f"note: this machine will be measured again: {error}")
    return row


def _kept(file: Path, key: dict[str, Any]) -> tuple[dict[str, Any] | None, int | None]:
    """Return the cached row and its number of threads; None, None if there is none with this key."""
    try:
        row = read_record(file)
    except JettisonError:  # absent or broken
        return None, None
    cached_key, threads = {field: row.pop(field, None) for field in key}, row.pop("threads", None)
    return (row, threads) if cached_key == key else (None, None)


def _torch_threads(otherwise: int | None = None) -> int | None:
    """Return how many threads torch uses in this process, or ``otherwise`` if torch is not imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else otherwise


def _host() -> str:
    """Describe everything that the figures depend on and that may change while the cache folder stays the same."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join([f"{platform.node()} {_processor()}", f"{cores} cores", *_gpus(), *settings])


def _gpus() -> list[str]:
    """Return the models of NVIDIA's GPUs and the names of AMD's, as their drivers list them."""
    names = []
    for file in sorted(Path("/").glob("proc/driver/nvidia/gpus/*/information")):
        names += re.findall(r"^Model:\s*(.*)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    for file in sorted(Path("/").glob("sys/class/kfd/kfd/topology/nodes/*/name")):
        names.append(file.read_text(encoding="utf-8", errors="replace").strip())
    return names


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return next(line.partition(":")[2].strip() for line in handle if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
