"""This machine's figures. Measured once, kept in the cache; once they are, nothing here imports torch."""

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

# Variables that torch's threads and GPUs follow from.
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
LAYOUT = 4  # of the kept file; one of another layout is measured anew


def measure(again: bool = False) -> dict[str, Any]:
    """A row of devices.yaml for this machine: from the cache unless ``again``. Takes seconds.

    bandwidth is the best of ``measured``, a table of {threads, streams, bandwidth} (empty on a GPU): each thread reads
    a part of 1 GiB, as one or several streams by turns. share: of it, what products with packed weights read. flops:
    the best square products in float32, in float16 or bfloat16, and in int8 where torch has it. overhead: of adding two
    numbers, the median.
    """
    file, key = cache_folder() / "device.json", {"layout": LAYOUT, "host": _host()}
    kept, threads = _kept(file, key)
    if kept and not again and threads == _torch_threads(threads):
        return kept
    say("measuring this machine (once) ...")
    from jettison.devices.measuring import figures  # imports torch

    row = figures(_processor())
    if again or not kept:  # else what is kept is for all programs, and this one has changed torch's threads for itself
        try:
            write_record(file, row | key | {"threads": _torch_threads()})
        except JettisonError as error:
            say(f"note: this machine will be measured again: {error}")
    return row


def _kept(file: Path, key: dict[str, Any]) -> tuple[dict[str, Any] | None, int | None]:
    """The row that was kept under this key, and with how many threads it was measured."""
    try:
        row = read_record(file)
    except JettisonError:  # absent or broken
        return None, None
    found, threads = {field: row.pop(field, None) for field in key}, row.pop("threads", None)
    return (row, threads) if found == key else (None, None)


def _torch_threads(otherwise: int | None = None) -> int | None:
    """How many threads torch uses in this process, if it is imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else otherwise


def _host() -> str:
    """All that figures depend on and that may change while the cache folder stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join([f"{platform.node()} {_processor()}", f"{cores} cores", *_gpus(), *given])


def _gpus() -> list[str]:
    """The models of NVIDIA's GPUs and the names of AMD's, as the drivers list them."""
    found = []
    for file in sorted(Path("/").glob("proc/driver/nvidia/gpus/*/information")):
        found += re.findall(r"^Model:\s*(.*)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    for file in sorted(Path("/").glob("sys/class/kfd/kfd/topology/nodes/*/name")):
        found.append(file.read_text(encoding="utf-8", errors="replace").strip())
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return next(line.partition(":")[2].strip() for line in handle if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
