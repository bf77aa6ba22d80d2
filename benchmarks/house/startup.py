"""Processor time of commands in fresh processes, which is mostly imports: plans, help, lists and wrong usage.

    python -m benchmarks.house.startup                      # about five minutes
    python -m benchmarks.house.startup --before PYTHON      # also of an earlier commit, installed for that interpreter
    python -m benchmarks.house.startup --check              # the claims alone, about half a minute

Measured is the user and system time of the process and its children. Rounds are interleaved, and medians are taken.
This machine is measured beforehand, as a user's machine is measured once. Plans of every known shape show what the
solver adds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, write_result
from jettison.core.files import digest
from jettison.graph.shape import shapes

NAME = "startup"
ROUNDS, SHAPE_ROUNDS = 3, 1
PLAN_TARGET, HELP_TARGET = 1.5, 0.5
BYTES = 0.9  # bytes of memory per parameter, in the plans of every shape
PLAN = "plan qwen3-4b --memory 3GB"
REFUSED = ("plann", "plan qwen3-4b")  # wrong usage
LIGHT = ("--help", "plan --help", "bench --help", "devices", "recipes", *REFUSED)
FOLDER = "plan FOLDER --memory 0.9GB"
SHOWN = "a folder of Qwen3-0.6B with a config and safetensors"


def seconds(python: str, command: list[str], code: int) -> float:
    """Return the processor seconds of `jettison COMMAND`. Raises RuntimeError if its exit code is not ``code``."""
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    # One cache per interpreter: a commit may be unable to read what another commit keeps.
    cache = RUNS / NAME / "cache" / digest(python)
    process = subprocess.run(
        [python, "-m", "jettison", *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JETTISON_CACHE": str(cache)},
    )
    if process.returncode != code:
        raise RuntimeError(f"jettison {' '.join(command)} exits with {process.returncode}: {process.stderr[-500:]}")
    return spent() - before


def medians(commands: dict[str, list[str]], pythons: dict[str, str], rounds: int) -> dict[str, dict[str, dict]]:
    """Return interpreter's name -> command -> median and samples."""
    samples_of = {name: {shown: [] for shown in commands} for name in pythons}
    for python in pythons.values():
        seconds(python, ["devices"], 0)  # this machine is measured
    for _ in range(rounds):
        for shown, command in commands.items():
            for name, python in pythons.items():
                samples_of[name][shown].append(round(seconds(python, command, 2 if shown in REFUSED else 0), 3))
    return {
        name: {shown: {"median": statistics.median(values), "samples": values} for shown, values in runs.items()}
        for name, runs in samples_of.items()
    }


def folder(path: Path) -> Path:
    """Return a folder as the hub has it, with weights of zeros that need no room on the disk."""
    from safetensors.torch import save_file
    from torch import zeros

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(shapes()["qwen3-0.6b"]["config"]))
    save_file({"model.embed_tokens.weight": zeros(1, 1)}, path / "model.safetensors")
    return path


def commands(model: Path) -> dict[str, list[str]]:
    """Return the measured commands, as they are shown -> their arguments."""
    by_title = {shown: shown.split() for shown in (PLAN, *LIGHT)}
    return by_title | {FOLDER: [str(model) if word == "FOLDER" else word for word in FOLDER.split()]}


def every_shape(python: str) -> dict[str, dict]:
    """Time a plan of each known shape, for a device with room for all of them."""
    plans = {
        name: ["plan", name, "--device", "h200", "--context", "0", "--memory", f"{int(BYTES * row['parameters'])}B"]
        for name, row in shapes().items()
    }
    return medians(plans, {"now": python}, SHAPE_ROUNDS)["now"]


def run(pythons: dict[str, str], rounds: int) -> dict[str, dict]:
    """Time all commands by all interpreters."""
    with tempfile.TemporaryDirectory() as room:
        return medians(commands(folder(Path(room) / "model")), pythons, rounds)


def claims(times: dict[str, dict], slow: Sequence[str] = ()) -> list[dict]:
    """Return the claims. slow: shapes whose plan exceeds the target."""
    note = f"jettison {PLAN}"
    if slow:
        note += (
            f"; at another budget, see the second table, {len(slow)} of {len(shapes())} shapes take longer: the solver"
        )
    worst = max(LIGHT, key=lambda shown: times[shown]["median"])
    return [
        claim("plan_known_shape_cpu_seconds", times[PLAN]["median"], "s", "lower", PLAN_TARGET, note),
        claim("plan_folder_cpu_seconds", times[FOLDER]["median"], "s", "lower", PLAN_TARGET, SHOWN),
        claim("help_cpu_seconds", times[worst]["median"], "s", "lower", HELP_TARGET, f"the slowest: jettison {worst}"),
    ]


def main() -> None:
    """Time commands and plans, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="an interpreter for which an earlier commit is installed")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.check:
        return check()
    start = time.perf_counter()
    pythons = {"now": sys.executable} | ({"before": options.before} if options.before else {})
    times = cell(NAME, "commands", lambda: run(pythons, ROUNDS))
    plans = cell(NAME, "shapes", lambda: every_shape(sys.executable))
    shown = [name for name in pythons if name in times]
    rows = [[f"jettison {text}", *(f"{times[name][text]['median']:.2f}" for name in shown)] for text in times["now"]]
    slow = [name for name in shapes() if plans[name]["median"] > PLAN_TARGET]
    tables = {
        "Processor seconds of a command, medians": {"columns": ["command", *shown], "rows": rows},
        "Processor seconds of a plan by shape, one run each": {
            "columns": ["shape", "seconds"],
            "rows": [[name, f"{plans[name]['median']:.2f}"] for name in shapes()],
        },
    }
    details = {"tables": tables, "shapes above the target": slow, "commands": times, "shapes": plans}
    write_result(NAME, claims(times["now"], slow), time.perf_counter() - start, details, script=__file__)


def check() -> None:
    """Time the commands again, and compare with the result file; exits."""
    recorded = {entry["id"]: entry["value"] for entry in json.loads((RESULTS / f"{NAME}.json").read_text())["claims"]}
    now = claims(run({"now": sys.executable}, 3)["now"])
    compare({entry["id"]: (entry["value"], recorded[entry["id"]], 0.5 * recorded[entry["id"]]) for entry in now})


if __name__ == "__main__":
    main()
