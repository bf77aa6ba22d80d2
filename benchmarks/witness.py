"""Helpers of all benchmarks: cells that are computed once, and result files that say where their numbers come from.

A cell is one computed part of a benchmark. Cells with all their samples are kept in runs/NAME, outside git. A result
file has claims, tables and summaries, at most 60 KB.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from jettison.core.files import write_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs"
MOST_BYTES, WIDTH = 60_000, 120  # bytes of a result file; characters of a line that holds a whole object


def claim(id: str, value: Any, unit: str, better: str, target: Any, note: str = "") -> dict[str, Any]:
    """Return a claim: a measured value, its target, and whether the claim holds.

    better: ``higher`` (at least the target), ``lower`` (at most the target) or ``equal``.
    note: text for readers; may be empty.
    """
    holds = {"higher": lambda: value >= target, "lower": lambda: value <= target, "equal": lambda: value == target}
    entry = {"id": id, "value": value, "unit": unit, "better": better, "target": target, "holds": holds[better]()}
    return entry | {"note": note}


def cell(name: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``work``, read from runs/NAME/KEY.json if it has been computed before.

    Adds ``seconds``, how long ``work`` took, and ``commit``, the commit whose code computed the result.
    """
    file = RUNS / name / f"{key}.json"
    if file.exists():
        return json.loads(file.read_text())
    print(f"{name}: {key} ...", flush=True)
    start, commit = time.perf_counter(), git("rev-parse", "HEAD") + (" and changes" if dirty() else "")
    result = work()
    result = result | {"seconds": round(time.perf_counter() - start, 1), "commit": commit}
    write_json(file, result)
    return result


def origin(result: dict[str, Any]) -> str:
    """Return a note for claims from a cell that older code computed; empty if the package has not changed since."""
    commit = result["commit"].split()[0]
    changed = git("diff", "--name-only", commit, "--", "src")
    return f"computed by commit {result['commit'][:7]}; the package has changed since" if changed else ""


def git(*arguments: str) -> str:
    """Run git in the root of the repository and return its output; empty if git fails."""
    process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip()


def dirty() -> bool:
    """Return whether the package or the benchmarks have changes that are not committed."""
    return bool(git("status", "--porcelain", "--", "src", "benchmarks/*.py"))


def write_result(
    name: str,
    claims: list[dict[str, Any]],
    seconds: float,
    details: dict[str, Any],
    *,
    script: str,
    seed: int = 0,
) -> None:
    """Write benchmarks/results/NAME.json and print the claims.

    seconds: how long all cells took.
    details: tables and summaries; a list of samples is written as its summary.
    script: the ``__file__`` of the script whose result this is.
    Raises ValueError if the file would have more than MOST_BYTES.
    """
    path = Path(script).resolve().relative_to(ROOT)
    text = result_text(
        name,
        {
            "claims": claims,
            "script": path.as_posix(),
            "command": f"python -m {'.'.join(path.with_suffix('').parts)}",
            "machine": machine(),
            "versions": {p: version(p) for p in ("torch", "transformers", "compressed-tensors", "peft", "accelerate")},
            "commit": git("rev-parse", "HEAD"),
            "dirty": dirty(),
            "seed": seed,
            "seconds": round(seconds),
            "details": {"raw": f"runs/{name}, outside git, has every cell with its samples"} | details,
        },
    )
    write_text(RESULTS / f"{name}.json", text)
    show(claims)


def result_text(name: str, result: dict[str, Any]) -> str:
    """Return the text of a result file. Raises ValueError if it has more than MOST_BYTES."""
    details = json.loads(json.dumps(without_samples(result["details"])))  # as JSON has it: keys become strings
    text = lay_out(result | {"details": details}) + "\n"
    if (size := len(text.encode())) > MOST_BYTES:
        raise ValueError(
            f"the result {name} has {size:,} bytes, more than {MOST_BYTES:,}: "
            f"keep raw samples in runs/{name}, and only claims, tables and summaries in the result"
        )
    return text


def without_samples(value: Any) -> Any:
    """Return ``value`` with a summary in place of every list of numbers that is called ``samples``."""
    if isinstance(value, dict):
        return {
            key: summary(item) if key == "samples" and isinstance(item, list) else without_samples(item)
            for key, item in value.items()
        }
    return [without_samples(item) for item in value] if isinstance(value, (list, tuple)) else value


def summary(samples: list[float]) -> dict[str, float]:
    """Return median, least, most and count of a list of samples."""
    median = statistics.median(samples)
    return {"median": median, "least": min(samples), "most": max(samples), "count": len(samples)}


def lay_out(value: Any, indent: str = "") -> str:
    """Return ``value`` as JSON of short lines.

    A list of single values, such as a row of a table, and everything that fits into WIDTH stand on one line.
    """
    line = json.dumps(value, ensure_ascii=False)
    row = isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value)
    if row or not isinstance(value, (list, dict)) or len(indent) + len(line) <= WIDTH:
        return line
    deeper = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(deeper + lay_out(item, deeper) for item in value) + f"\n{indent}]"
    items = (f"{deeper}{json.dumps(key, ensure_ascii=False)}: {lay_out(item, deeper)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, memory in GB, GPU, Python version."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the processor's name, or the architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def show(claims: list[dict[str, Any]]) -> None:
    """Print each claim with its value, its target, whether it holds, and its note."""
    sign = {"higher": "≥", "lower": "≤", "equal": "="}
    for entry in claims:
        value = f"{entry['value']:.4g}" if isinstance(entry["value"], float) else entry["value"]
        mark = "holds" if entry["holds"] else "FALLS SHORT"
        print(f"  {entry['id']:<32} {value:>10} {entry['unit']:<8} {sign[entry['better']]} {entry['target']:<8} {mark}")
        if entry["note"]:
            print(f"      {entry['note']}")


def compare(checks: dict[str, tuple[float, float, float]]) -> None:
    """Print recomputed beside recorded values. Exits with 1 if a difference exceeds its tolerance, else with 0.

    checks: name -> (recomputed value, recorded value, tolerance).
    """
    failures = 0
    for name, (now, recorded, tolerance) in checks.items():
        off = abs(now - recorded) > tolerance
        failures += off
        print(f"{name}: {now:.6g} now, {recorded:.6g} recorded, tolerance {tolerance:.3g}: {'OFF' if off else 'ok'}")
    sys.exit(1 if failures else 0)
