"""The proof's claims: tasks before and after recovery, large models, and whether dry runs tell the truth.

    python benchmarks/proof.py            # after study.py and presets.py; about an hour; continues cell by cell
    python benchmarks/proof.py --check    # a 4B model of two blocks, and a few items of every task: five minutes

Tasks: the bundled suite on scribe and, twice, on what plain rounding (groups of 64 between their least and greatest
weight: our reconstruction of the paper's start) and recovery make of it. Once with every matrix of the blocks in
2 bits: rounded, and the preset w2 as presets.py recovered it. Once W4/W2-GateUp, whose damage on scribe is of the size
of the errors: rounded, and recovered from 10,240 windows of 128 tokens that scribe wrote (cells of study.py). Large
models: checkpoints of random weights in the shapes of Qwen3-4B (8 GB, file to file, rounded to 4 bits with the full
range) and Qwen3-0.6B (gptq). Dry runs: what ``--dry-run`` said before each run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from study import make, slug
from transformers import AutoConfig, AutoModelForCausalLM
from witness import RESULTS, ROOT, RUNS, cell, claim, compare, origin, write_result

from jettison.core.files import write_json
from jettison.encodings.grid import Grid
from jettison.graph.folder import ModelFolder
from jettison.methods.quantize.rtn import rtn
from jettison.pipeline.compression import compress
from jettison.pipeline.tasks import compare_tasks, evaluate_tasks

NAME = "proof"
FOLDER = RUNS / NAME
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
SHAPES = {
    "qwen3-4b": dict(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8
    ),
    "qwen3-0.6b": dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8
    ),
}
SHARD = 2 << 30
STREAMED = {"name": "w4, full range", "steps": [{"quantize": {"method": "rtn", "bits": 4, "clip": False}}]}
CALIBRATED = ["calibration.samples=64"]
CHECKED = 50
DEMO = ["recover.samples=1024", "recover.length=256", "recover.batch=8", "recover.lr=0.003", "recover.scale_lr=0.003"]


def tasks(model: str | Path) -> dict:
    return {"tasks": evaluate_tasks(model)}


def w2_rounded() -> Path:
    folder = FOLDER / "w2-rounded"
    compress("scribe", W2_ROUNDED, folder)
    return folder


def checkpoint(name: str, blocks: int | None = None) -> Path:
    """A folder of random weights in the shape of a public model, with scribe's tokenizer."""
    folder = FOLDER / (f"{name}-{blocks}" if blocks else name)
    if (folder / "config.json").exists():
        return folder
    scribe = ModelFolder("scribe").folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name] | {"head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
    shape |= {"num_hidden_layers": blocks} if blocks else {}
    config = AutoConfig.for_model("qwen3", **shape, max_position_embeddings=40960, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    shard, size, number = {}, 0, 0
    for tensor, parameter in model.named_parameters():
        fill = torch.randn if parameter.dim() > 1 else torch.ones
        shard[tensor] = (fill(parameter.shape, dtype=torch.float32) * (0.02 if parameter.dim() > 1 else 1.0)).bfloat16()
        size += shard[tensor].nbytes
        if size > SHARD:
            save_file(shard, folder / f"model-{number:02d}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
    save_file(shard, folder / f"model-{number:02d}.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scribe / file, folder / file)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)  # last: a folder with a config is complete
    return folder


def watched(*arguments: str) -> dict:
    """Run a command of jettison in a process of its own: seconds, peak resident memory, what --json wrote."""
    result = FOLDER / "result.json"
    command = [sys.executable, "-m", "jettison", *arguments, "--json", str(result), "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {status}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": usage.ru_maxrss * 1024, "result": json.loads(result.read_text())}


def compression(name: str, recipe: str | dict, changes: list[str] = (), blocks: int | None = None) -> list[str]:
    """The command that compresses a large checkpoint into a folder that is not there yet."""
    out = FOLDER / f"{name}-compressed"
    shutil.rmtree(out, ignore_errors=True)
    if isinstance(recipe, dict):
        write_json(FOLDER / "recipe.json", recipe)
        recipe = str(FOLDER / "recipe.json")
    arguments = ["compress", str(checkpoint(name, blocks)), "--recipe", recipe, "--out", str(out)]
    return arguments + [f"--set={change}" for change in changes]


def said(*arguments: str) -> dict:
    """What the dry run of a command says."""
    found = watched(*arguments, "--dry-run")
    result = found["result"]
    return {"dry_run_seconds": found["seconds"], "said": result.get("forecast", result)["steps"]}


def large(name: str, *options, **more) -> dict:
    """Compress a large checkpoint, in a process of its own."""
    arguments = compression(name, *options, **more)
    done, out = watched(*arguments), Path(arguments[arguments.index("--out") + 1])
    shards = sorted(out.glob("model-*.safetensors"))
    moments = [shard.stat().st_mtime for shard in shards]
    disk = sum(shard.stat().st_size for shard in shards)
    found = {
        "file_gb": ModelFolder(arguments[1]).checkpoint.file_bytes / 1e9,
        "took": {"step": "compress", "seconds": done["seconds"], "memory": done["peak"], "disk": disk},
        "seconds_per_block": (moments[-2] - moments[0]) / max(1, len(moments) - 2),
    }
    shutil.rmtree(out)
    return found


def streaming() -> dict:
    found = large("qwen3-4b", STREAMED)
    folder = FOLDER / "qwen3-4b"
    start = time.perf_counter()
    shutil.copytree(folder, FOLDER / "copy")
    os.sync()
    copy = time.perf_counter() - start
    shutil.rmtree(FOLDER / "copy")
    return found | {"copy_seconds": copy, "arithmetic_seconds": arithmetic(folder)}


def arithmetic(folder: Path) -> float:
    """Of rounding every matrix, with nothing read or written."""
    shapes: dict[tuple[int, int], int] = {}
    for linear in ModelFolder(folder).anatomy:
        if "embed" not in linear.roles:
            shapes[linear.rows, linear.columns] = shapes.get((linear.rows, linear.columns), 0) + 1
    total = 0.0
    for (rows, columns), count in shapes.items():
        height = min(rows, (1 << 25) // columns)
        weight = torch.randn(height, columns)
        start = time.perf_counter()
        rtn(weight, Grid(4, 128), clip=False).dequantize()
        total += (time.perf_counter() - start) * count * rows / height
    return total


def demo() -> dict:
    """What each step of the demo takes, in an empty cache."""
    out, cache = FOLDER / "demo", FOLDER / "demo-cache"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["JETTISON_CACHE"] = str(cache)
    took = FOLDER / "took.json"
    script = ROOT / "benchmarks" / "fit_steps.py"
    subprocess.run([sys.executable, str(script), str(out), str(took), *DEMO], check=True, cwd=ROOT)
    del os.environ["JETTISON_CACHE"]
    return {"took": json.loads(took.read_text())}


def demo_said() -> dict:
    changes = [f"--set={change}" for change in DEMO]
    return said("fit", "scribe", "--recipe", "gateup-w4w2", *changes, "--out", str(FOLDER / "demo-dry"))


STAGES = {
    "original": lambda: "scribe",
    "w2 rounded": w2_rounded,
    "w2 recovered": lambda: RUNS / "presets" / "w2",
    "gate/up rounded": lambda: make(GATE_UP_ROUNDED),
    "gate/up recovered": lambda: make(GATE_UP_RECOVERED),
}
RUNS_TOLD = {
    "4B, file to file": ("streaming", lambda: said(*compression("qwen3-4b", STREAMED)), streaming),
    "0.6B, gptq": (
        "calibrated",
        lambda: said(*compression("qwen3-0.6b", "w4", CALIBRATED)),
        lambda: large("qwen3-0.6b", "w4", CALIBRATED),
    ),
    "demo": ("demo", demo_said, demo),
}


def tally(compared: list[dict]) -> tuple[int, float]:
    """How many tasks count, and the share of them of which 80 % came back."""
    counting = [found for found in compared if found["counts"]]
    return len(counting), sum(found["recovered"] >= 0.8 for found in counting) / max(1, len(counting))


def ratios(found: dict) -> dict[str, dict]:
    """Per step of a run: what was said, what it took, and by which factor the two differ."""
    took = found["took"] if isinstance(found["took"], list) else [found["took"]]
    if len(took) > 1:  # the demo's two evaluations before recovery are one step of the forecast
        before = {"step": "evaluate", "seconds": took[1]["seconds"] + took[2]["seconds"], "memory": took[2]["memory"]}
        took = [took[0], before, took[3], took[4] | {"step": "evaluate again"}]
    factors, memory = {}, 0.0
    for said, real in zip(found["said"], took, strict=True):
        memory = max(memory, said["memory"])  # what was taken is the largest so far, too
        factor = max(said["seconds"] / real["seconds"], real["seconds"] / said["seconds"])
        factors[said["step"]] = {
            "said_seconds": said["seconds"],
            "took_seconds": real["seconds"],
            "factor": factor,
            "said_memory": memory,
            "took_memory": real["memory"],
            "memory_factor": max(memory / real["memory"], real["memory"] / memory),
        }
    return factors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the cells there are")
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
    apart = {
        text: tally([found for found in compared["w2"] if text in found["task"]]) for text in ("books", "wikitext")
    }
    gate_up = "w2 ({}); of {} that lose measurably to 2 bits in gate and up alone, {:.0%} come back to 80 %".format(
        ", ".join(f"{text} {share:.0%} of {number}" for text, (number, share) in apart.items()),
        *tally(compared["gate/up"]),
    )
    for run, (name, tell, do) in RUNS_TOLD.items():
        if absent(name):
            missing.append(run)
            continue
        told = cell(NAME, f"{name}-said", tell)
        runs[run] = told | cell(NAME, name, do)
    streamed = runs["4B, file to file"]
    told = {run: ratios(found) for run, found in runs.items()}
    worst = max(step["factor"] for steps in told.values() for step in steps.values())
    overhead = streamed["took"]["seconds"] / (streamed["copy_seconds"] + streamed["arithmetic_seconds"])
    study = json.loads((RESULTS / "study.json").read_text())["details"]
    books, cells = "books-evaluation", study["cells"]
    synthetic, real = (study["seeds"][books][data] for data in ("synthetic", "books"))
    gap, gap_error = synthetic[0] - real[0], (synthetic[1] ** 2 + real[1] ** 2) ** 0.5
    w3 = {key: found for key, found in cells.items() if key.startswith("3 bits")}
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
    seconds = sum(found["seconds"] for found in (*measured.values(), *runs.values()))
    details = {
        "missing": missing,
        "tables": tables(measured, compared, told, runs),
        "compared": compared,
        "dry_runs": told,
        "runs": runs,
    }
    details["scores"] = {task: found["scores"] for task, found in measured["original"]["tasks"].items()}
    write_result(NAME, claims, seconds, details)


def tables(measured: dict, compared: dict[str, list[dict]], told: dict, runs: dict) -> dict:
    found = {}
    for recipe, title in (("w2", "2 bits in every block matrix"), ("gate/up", "2 bits in gate and up")):
        rows = []
        stages = ("original", f"{recipe} rounded", f"{recipe} recovered")
        for task in compared[recipe]:
            of = [measured[stage]["tasks"][task["task"]] for stage in stages]
            share = f"{task['recovered']:.0%} ± {task['recovered_error']:.0%}" if task["counts"] else "does not count"
            rows.append([task["task"], f"{of[0]['random']:.0%}", *(f"{each['accuracy']:.1%}" for each in of)])
            rows[-1] += [f"{100 * task['lost']:.1f} ± {100 * task['lost_error']:.1f}", share]
        columns = ["task", "random", "original", "rounded", "recovered", "points lost", "share recovered"]
        found[f"Tasks (accuracy), {title}"] = {"columns": columns, "rows": rows}
    dry = [
        [run, step, f"{of['said_seconds']:.0f} s", f"{of['took_seconds']:.0f} s", f"{of['factor']:.2f}",
         f"{of['said_memory'] / 1e9:.2f} GB", f"{of['took_memory'] / 1e9:.2f} GB"]
        for run, steps in told.items() for step, of in steps.items()
    ]  # fmt: skip
    big = [
        [run, f"{of['file_gb']:.1f} GB", f"{of['took']['memory'] / 1e9:.2f} GB", f"{of['took']['seconds']:.0f} s",
         f"{of['seconds_per_block']:.1f} s"]
        for run, of in runs.items() if "file_gb" in of
    ]  # fmt: skip
    return found | {
        "Dry runs": {
            "columns": ["run", "step", "said", "took", "factor", "memory said", "memory taken"], "rows": dry
        },
        "Large models": {"columns": ["run", "files", "peak memory", "time", "per block"], "rows": big},
    }  # fmt: skip


def check() -> None:
    """The memory of a 4B model of two blocks, whose peak is that of 36; the first items of every task on scribe."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]
    thin = large("qwen3-4b", STREAMED, blocks=2)["took"]["memory"] / 1e9
    found = {"peak GB, 4B": (thin, recorded["runs"]["4B, file to file"]["took"]["memory"] / 1e9, 0.5)}
    for task, now in evaluate_tasks("scribe", items=CHECKED).items():
        before = [float(score) for score in recorded["scores"][task].split()[:CHECKED]]
        found[task] = (now["accuracy"], sum(before) / len(before), 0.02)
    compare(found)


if __name__ == "__main__":
    main()
