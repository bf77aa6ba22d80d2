"""What every benchmark needs: cells that are kept, and a result file that says where its numbers are from.

Cells with all their samples are in runs/NAME, outside git. A result has claims, tables and summaries, at most 60 KB.
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
MOST_BYTES, WIDTH = 60_000, 120  # of a result file; of a line that holds a whole table or object


def claim(id: str, value: Any, unit: str, better: str, target: Any, note: str = "") -> dict[str, Any]:
    """better: ``higher``, ``lower`` or ``equal``."""
    holds = {"higher": lambda: value >= target, "lower": lambda: value <= target, "equal": lambda: value == target}
    found = {"id": id, "value": value, "unit": unit, "better": better, "target": target, "holds": holds[better]()}
    return found | {"note": note}


def cell(name: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``work``, from runs/NAME/KEY.json if it has been computed before. Adds its ``seconds`` and the
    ``commit`` whose code computed it."""
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
    """A note for claims from a cell that older code computed; empty if the package is the same still."""
    commit = result["commit"].split()[0]
    changed = git("diff", "--name-only", commit, "--", "src")
    return f"computed by commit {result['commit'][:7]}; the package has changed since" if changed else ""


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def dirty() -> bool:
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

    seconds: what all cells took. details: tables and summaries; of lists of samples, a summary is written.
    script: the ``__file__`` of the script whose result this is.
    Raises ValueError if the file would have more than MOST_BYTES.
    """
    place = Path(script).resolve().relative_to(ROOT)
    text = result_text(
        name,
        {
            "claims": claims,
            "script": place.as_posix(),
            "command": f"python -m {'.'.join(place.with_suffix('').parts)}",
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
    """A result as it is written. Raises ValueError if it is too large."""
    details = json.loads(json.dumps(without_samples(result["details"])))  # keys are strings from here on
    text = lay_out(result | {"details": details}) + "\n"
    if (size := len(text.encode())) > MOST_BYTES:
        raise ValueError(
            f"the result {name} has {size:,} bytes, more than {MOST_BYTES:,}: "
            f"keep raw samples in runs/{name}, and only claims, tables and summaries in the result"
        )
    return text


def without_samples(value: Any) -> Any:
    """The same, with a summary in place of every list of numbers that is called ``samples``."""
    if isinstance(value, dict):
        return {
            key: summary(each) if key == "samples" and isinstance(each, list) else without_samples(each)
            for key, each in value.items()
        }
    return [without_samples(each) for each in value] if isinstance(value, (list, tuple)) else value


def summary(samples: list[float]) -> dict[str, float]:
    middle = statistics.median(samples)
    return {"median": middle, "least": min(samples), "most": max(samples), "count": len(samples)}


def lay_out(value: Any, indent: str = "") -> str:
    """JSON in which a list of single values, such as a row of a table, and all that fits, stands on one line."""
    line = json.dumps(value, ensure_ascii=False)
    row = isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value)
    if row or not isinstance(value, (list, dict)) or len(indent) + len(line) <= WIDTH:
        return line
    deeper = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(deeper + lay_out(each, deeper) for each in value) + f"\n{indent}]"
    items = (f"{deeper}{json.dumps(key, ensure_ascii=False)}: {lay_out(each, deeper)}" for key, each in value.items())
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def show(claims: list[dict[str, Any]]) -> None:
    sign = {"higher": "≥", "lower": "≤", "equal": "="}
    for found in claims:
        value = f"{found['value']:.4g}" if isinstance(found["value"], float) else found["value"]
        mark = "holds" if found["holds"] else "FALLS SHORT"
        print(f"  {found['id']:<32} {value:>10} {found['unit']:<8} {sign[found['better']]} {found['target']:<8} {mark}")
        if found["note"]:
            print(f"      {found['note']}")


def compare(found: dict[str, tuple[float, float, float]]) -> None:
    """Name -> (recomputed, recorded, tolerance). Prints each and exits with 1 if one is off."""
    bad = 0
    for name, (now, recorded, tolerance) in found.items():
        off = abs(now - recorded) > tolerance
        bad += off
        print(f"{name}: {now:.6g} now, {recorded:.6g} recorded, tolerance {tolerance:.3g}: {'OFF' if off else 'ok'}")
    sys.exit(1 if bad else 0)
