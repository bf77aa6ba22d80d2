"""The proof's claims: tasks before and after recovery, large models, and whether the forecasts of dry runs are right.

    python -m benchmarks.house.proof          # after study.py and presets.py; about an hour; continues cell by cell
    python -m benchmarks.house.proof --check  # a 4B model of two blocks, and a few items of every task: five minutes

- Tasks: the bundled suite on scribe and, for two recipes, on scribe after plain rounding and after recovery. Plain
  rounding puts groups of 64 between their least and greatest weight: our reconstruction of the paper's start.
  - w2: every matrix of the blocks in 2 bits, rounded, and the preset w2 as presets.py recovered it.
  - W4/W2-GateUp, whose loss on scribe is about as large as the standard errors: rounded, and recovered from 10,240
    windows of 128 tokens that scribe wrote (cells of study.py).
- Large models: checkpoints of random weights in the shapes of Qwen3-4B (8 GB, file to file, rounded to 4 bits with the
  full range) and Qwen3-0.6B (gptq).
- Dry runs: the forecast of ``--dry-run`` before each run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.house.large_models import FOLDER, NAME, STREAMED, compression, dry_run, large, streaming
from benchmarks.recovery.study import make, slug
from benchmarks.witness import RESULTS, ROOT, RUNS, cell, claim, compare, origin, write_result
from jettison.pipeline.compression import compress
from jettison.pipeline.tasks import compare_tasks, evaluate_tasks

GATE_UP_ROUNDED, GATE_UP_RECOVERED = "rounding: rtn, full range", "samples: 10,240"
W2_ROUNDED = {
    "name": "w2, rounded",
    "steps": [
        {
            "quantize": {"method": "rtn", "bits": 2, "group_size": 64, "clip": False, "symmetric": False},
            "where": {"role": ["q", "k", "v", "o", "gate", "up", "down"]},
        },
        {
            "quantize": {"method": "rtn", "bits": 4, "group_size": 128, "clip": False, "symmetric": False},
            "where": {"role": ["head"]},
        },
    ],
}
CALIBRATED = ["calibration.samples=64"]
CHECKED = 50  # items of each task that --check recomputes
DEMO = ["recover.samples=1024", "recover.length=256", "recover.batch=8", "recover.lr=0.003", "recover.scale_lr=0.003"]


def tasks(model: str | Path) -> dict:
    """Return the scores of a model on all bundled tasks."""
    return {"tasks": evaluate_tasks(model)}


def w2_rounded() -> Path:
    """Return scribe with every matrix of the blocks rounded to 2 bits."""
    folder = FOLDER / "w2-rounded"
    compress("scribe", W2_ROUNDED, folder)
    return folder


def demo() -> dict:
    """Return the cost of each step of the demo, run with an empty cache."""
    out, cache = FOLDER / "demo", FOLDER / "demo-cache"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["JETTISON_CACHE"] = str(cache)
    took = FOLDER / "took.json"
    command = [sys.executable, "-m", "benchmarks.house.fit_steps", str(out), str(took), *DEMO]
    subprocess.run(command, check=True, cwd=ROOT)
    del os.environ["JETTISON_CACHE"]
    return {"took": json.loads(took.read_text())}


def demo_said() -> dict:
    """Return the forecast of the demo."""
    changes = [f"--set={change}" for change in DEMO]
    return dry_run("fit", "scribe", "--recipe", "gateup-w4w2", *changes, "--out", str(FOLDER / "demo-dry"))


STAGES = {
    "original": lambda: "scribe",
    "w2 rounded": w2_rounded,
    "w2 recovered": lambda: RUNS / "presets" / "w2",
    "gate/up rounded": lambda: make(GATE_UP_ROUNDED),
    "gate/up recovered": lambda: make(GATE_UP_RECOVERED),
}
RUNS_TOLD = {
    "4B, file to file": ("streaming", lambda: dry_run(*compression("qwen3-4b", STREAMED)), streaming),
    "0.6B, gptq": (
        "calibrated",
        lambda: dry_run(*compression("qwen3-0.6b", "w4", CALIBRATED)),
        lambda: large("qwen3-0.6b", "w4", CALIBRATED),
    ),
    "demo": ("demo", demo_said, demo),
}


def brief(scores: str) -> dict:
    """Return the number of a task's items, their mean score, and that of the first ones, for ``--check``."""
    values = [float(score) for score in scores.split()]
    first = values[:CHECKED]
    return {"items": len(values), "accuracy": round(sum(values) / len(values), 6), "checked": sum(first) / len(first)}


def tally(compared: list[dict]) -> tuple[int, float]:
    """Return how many tasks count, and in which share of them at least 80 % of the loss is recovered."""
    counting = [task for task in compared if task["counts"]]
    return len(counting), sum(task["recovered"] >= 0.8 for task in counting) / max(1, len(counting))


def ratios(run: dict) -> dict[str, dict]:
    """Return, per step of a run, the forecast, the real cost, and the factor between them."""
    took = run["took"] if isinstance(run["took"], list) else [run["took"]]
    if len(took) > 1:  # the demo's two evaluations before recovery are one step of the forecast
        before = {"step": "evaluate", "seconds": took[1]["seconds"] + took[2]["seconds"], "memory": took[2]["memory"]}
        took = [took[0], before, took[3], took[4] | {"step": "evaluate again"}]
    factors, memory = {}, 0.0
    for forecast, real in zip(run["said"], took, strict=True):
        memory = max(memory, forecast["memory"])  # the measured memory is the largest so far, too
        factor = max(forecast["seconds"] / real["seconds"], real["seconds"] / forecast["seconds"])
        factors[forecast["step"]] = {
            "said_seconds": forecast["seconds"],
            "took_seconds": real["seconds"],
            "factor": factor,
            "said_memory": memory,
            "took_memory": real["memory"],
            "memory_factor": max(memory / real["memory"], real["memory"] / memory),
        }
    return factors


def main() -> None:
    """Compute all cells, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the computed cells")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    absent = lambda key: arguments.summary and not (FOLDER / f"{key}.json").exists()
    measured, runs, missing = {}, {}, []
    for stage, find in STAGES.items():
        measured[stage] = cell(NAME, f"tasks-{slug(stage)}", lambda find=find: tasks(find()))
    compared = {
        recipe: compare_tasks(
            *(measured[stage]["tasks"] for stage in ("original", f"{recipe} rounded", f"{recipe} recovered"))
        )
        for recipe in ("w2", "gate/up")
    }
    counting, won = tally(compared["w2"])
    by_text = {text: tally([task for task in compared["w2"] if text in task["task"]]) for text in ("books", "wikitext")}
    gate_up = "w2 ({}); of {} that lose measurably to 2 bits in gate and up alone, {:.0%} come back to 80 %".format(
        ", ".join(f"{text} {share:.0%} of {number}" for text, (number, share) in by_text.items()),
        *tally(compared["gate/up"]),
    )
    for run, (name, tell, do) in RUNS_TOLD.items():
        if absent(name):
            missing.append(run)
            continue
        forecast = cell(NAME, f"{name}-said", tell)
        runs[run] = forecast | cell(NAME, name, do)
    streamed = runs["4B, file to file"]
    factors = {run: ratios(result) for run, result in runs.items()}
    worst = max(step["factor"] for steps in factors.values() for step in steps.values())
    overhead = streamed["took"]["seconds"] / (streamed["copy_seconds"] + streamed["arithmetic_seconds"])
    study = json.loads((RESULTS / "study.json").read_text())["details"]
    books, cells = "books-evaluation", study["cells"]
    synthetic, real = (study["seeds"][books][data] for data in ("synthetic", "books"))
    gap, gap_error = synthetic[0] - real[0], (synthetic[1] ** 2 + real[1] ** 2) ** 0.5
    w3 = {key: result for key, result in cells.items() if key.startswith("3 bits")}
    best = min(w3, key=lambda key: w3[key][books]["lost"])
    recovery = cells["setting: the setting"]
    claims = [
        claim("tasks_that_count", counting, "of 22", "higher", 6, origin(measured["w2 recovered"])),
        claim("tasks_share_recovered", won, "", "higher", 0.75, gate_up),
        claim(
            "synthetic_minus_real_recovery_points", 100 * gap, "points", "higher", -5,
            f"± {100 * gap_error:.1f}, three seeds each, books; WikiText-2: "
            f"{100 * (study['seeds']['wikitext2']['synthetic'][0] - study['seeds']['wikitext2']['books'][0]):.1f}",
        ),
        claim(
            "recovery_scales_only_books", cells["trained: scales (gptaq)"][books]["recovered"], "", "higher",
            cells["method, no recovery: gptaq"][books]["recovered"], "the target is what gptaq's codes recover alone",
        ),
        claim(
            "best_w3_vs_gateup_recovered_log_ppl", w3[best][books]["lost"] - recovery[books]["lost"], "nats", "higher",
            0.0, f"{best}, {w3[best]['bits_per_weight']:.2f} bits against {recovery['bits_per_weight']:.2f}; "
            "below 0, 3 bits without recovery are better",
        ),
        claim("compress_4b_peak_gb", streamed["took"]["memory"] / 1e9, "GB", "lower", 3.0, origin(streamed)),
        claim("compress_4b_time_over_copy_and_arithmetic", overhead, "x", "lower", 4.0, origin(streamed)),
        claim(
            "dry_run_time_ratio_worst", worst, "x", "lower", 1.5,
            f"over {', '.join(runs)}; not measured yet: {', '.join(missing) or 'nothing'}",
        ),
    ]  # fmt: skip
    seconds = sum(result["seconds"] for result in (*measured.values(), *runs.values()))
    details = {
        "missing": missing,
        "tables": tables(measured, compared, factors, runs),
        "compared": compared,
        "dry_runs": factors,
        "runs": runs,
    }
    details["scores"] = {task: brief(result["scores"]) for task, result in measured["original"]["tasks"].items()}
    write_result(NAME, claims, seconds, details, script=__file__)


def tables(measured: dict, compared: dict[str, list[dict]], factors: dict, runs: dict) -> dict:
    """Return the tables of the results page."""
    by_title = {}
    for recipe, title in (("w2", "2 bits in every block matrix"), ("gate/up", "2 bits in gate and up")):
        rows = []
        stages = ("original", f"{recipe} rounded", f"{recipe} recovered")
        for task in compared[recipe]:
            of = [measured[stage]["tasks"][task["task"]] for stage in stages]
            share = f"{task['recovered']:.0%} ± {task['recovered_error']:.0%}" if task["counts"] else "does not count"
            rows.append([task["task"], f"{of[0]['random']:.0%}", *(f"{scores['accuracy']:.1%}" for scores in of)])
            rows[-1] += [f"{100 * task['lost']:.1f} ± {100 * task['lost_error']:.1f}", share]
        columns = ["task", "random", "original", "rounded", "recovered", "points lost", "share recovered"]
        by_title[f"Tasks (accuracy), {title}"] = {"columns": columns, "rows": rows}
    dry = [
        [run, step, f"{of['said_seconds']:.0f} s", f"{of['took_seconds']:.0f} s", f"{of['factor']:.2f}",
         f"{of['said_memory'] / 1e9:.2f} GB", f"{of['took_memory'] / 1e9:.2f} GB"]
        for run, steps in factors.items() for step, of in steps.items()
    ]  # fmt: skip
    big = [
        [run, f"{of['file_gb']:.1f} GB", f"{of['took']['memory'] / 1e9:.2f} GB", f"{of['took']['seconds']:.0f} s",
         f"{of['seconds_per_block']:.1f} s"]
        for run, of in runs.items() if "file_gb" in of
    ]  # fmt: skip
    return by_title | {
        "Dry runs": {
            "columns": ["run", "step", "said", "took", "factor", "memory said", "memory taken"], "rows": dry
        },
        "Large models": {"columns": ["run", "files", "peak memory", "time", "per block"], "rows": big},
    }  # fmt: skip


def check() -> None:
    """Recompute the memory of a 4B model and the first items of every task on scribe, and compare; exits.

    The 4B model has two blocks: its peak memory is that of 36.
    """
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]
    peak_gb = large("qwen3-4b", STREAMED, blocks=2)["took"]["memory"] / 1e9
    checks = {"peak GB, 4B": (peak_gb, recorded["runs"]["4B, file to file"]["took"]["memory"] / 1e9, 0.5)}
    for task, now in evaluate_tasks("scribe", items=CHECKED).items():
        checks[task] = (now["accuracy"], recorded["scores"][task]["checked"], 0.02)
    compare(checks)


if __name__ == "__main__":
    main()
