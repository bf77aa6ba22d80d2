"""The spine's claims: the demo, the recovery on scribe, kills, and the files in transformers.

    python -m benchmarks.house.spine          # about an hour and a half on two cores; continues cell by cell
    python -m benchmarks.house.spine --check  # recomputes the start and the files in about four minutes

Recovery is the share of lost log-perplexity that is regained: (start − recovered) / (start − original). The start is
W4/W2-GateUp rounded to nearest with a clipped range. Recovery trains only on text that scribe wrote.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.witness import RESULTS, ROOT, RUNS, cell, claim, compare, origin, write_result
from jettison.core.files import file_digest
from jettison.domains.text.data import token_windows
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.recovery import recover
from jettison.runtime.load import load

NAME = "spine"
TEXTS = ("books-evaluation", "wikitext2")
KILLS = 10  # of each kind of run
ROUNDED = {
    "name": "gateup-w4w2, rounded",
    "steps": [
        {
            "quantize": {"method": "rtn", "bits": 4, "group_size": 64},
            "where": {"role": ["q", "k", "v", "o", "down", "head"]},
        },
        {"quantize": {"method": "rtn", "bits": 2, "group_size": 64}, "where": {"role": ["gate", "up"]}},
    ],
}
RECOVERED = ["quantize.group_size=64", "quantize.iterations=30", "recover.samples=8192", "recover.length=256"]
RECOVERED += ["recover.epochs=2", "recover.batch=8", "recover.lr=0.003", "recover.scale_lr=0.003"]
MISSED = (
    "first attempt on this text; text written before a flaw was mended gave 0.801 on books and 1.24 on WikiText-2, and "
    "study.py's seeds differ by 0.008 and 0.27: not tried yet: its loss temperature 2, text at temperature 1 alone"
)
SMALL = [
    "recover.samples=64",
    "recover.length=64",
    "recover.epochs=4",
    "calibration.samples=32",
    "calibration.length=64",
    "quantize.iterations=2",
]


def measure(model: Path | str, **options) -> dict:
    """Evaluate a model on all of TEXTS."""
    return evaluate(model, texts=TEXTS, tokens=None, **options)


def start() -> dict:
    """Return the scores of the original, and of the rounded model from which recovery starts."""
    folder = fresh("start")
    compress("scribe", ROUNDED, folder)
    return {"original": measure("scribe", teacher="scribe"), "rounded": measure(folder)}


def recovery() -> dict:
    """Compress and recover scribe, and return scores before and after recovery. A killed benchmark continues."""
    folder = RUNS / NAME / "recovered"  # not fresh: a killed benchmark continues its recovery
    compress("scribe", "gateup-w4w2", folder, changes=RECOVERED)
    quantized_file = RUNS / NAME / "quantized.json"
    if not quantized_file.exists():
        quantized_file.write_text(json.dumps(measure(folder, adapter=False)))
    manifest = recover(folder)
    return {
        "quantized": json.loads(quantized_file.read_text()),
        "recovered": measure(folder),
        "recipe": manifest["recipe"],
        "loss": manifest["recovery"]["loss"][:: max(1, len(manifest["recovery"]["loss"]) // 64)],
    }


def demo() -> dict:
    """Run `make demo` as it stands in the Makefile, without the set-up, with a new folder and an empty cache."""
    makefile = (ROOT / "Makefile").read_text()
    options = re.search(r"DEMO_RECOVERY := (.*?[^\\])\n", makefile, re.DOTALL)[1].replace("\\\n\t", "")
    line = re.search(r"jettison (fit scribe .*)", makefile)[1].replace("$(DEMO_RECOVERY)", options)
    folder = fresh("demo")
    arguments = line.replace("runs/demo", str(folder)).split()
    environment = {"JETTISON_CACHE": str(fresh("demo-cache"))}
    start_time = time.perf_counter()
    process = run(arguments, environment)
    minutes = (time.perf_counter() - start_time) / 60
    assert process.returncode == 0, process.stderr
    results = json.loads((folder / "jettison.json").read_text())["results"]
    return {"minutes": minutes, "command": line, "results": results}


def kills(kind: str) -> dict:
    """Kill ten runs at random moments, and run each again.

    kind: ``compress`` or ``recover``.
    Returns which of them end with the same bytes as an undisturbed run.
    """
    whole = fresh(f"kill-{kind}-whole")
    source = fresh(f"kill-{kind}-start")
    if kind == "recover":
        compress("scribe", "gateup-w4w2", source, changes=SMALL)
        shutil.copytree(source, whole)
    changes = [f"--set={change}" for change in SMALL]
    arguments = {
        "compress": lambda folder: ["compress", "scribe", "--recipe", "gateup-w4w2", "--out", str(folder), *changes],
        "recover": lambda folder: ["recover", str(folder), "--save-every", "0"],
    }[kind]
    run(arguments(whole), check=True)  # makes the synthetic text, so that kills hit the work itself
    if kind == "recover":
        shutil.rmtree(whole)
        shutil.copytree(source, whole)
    else:
        shutil.rmtree(whole)
    began = time.perf_counter()
    run(arguments(whole), check=True)
    seconds = time.perf_counter() - began
    expected, rng, trials = digests(whole), random.Random(0), []
    for trial in range(KILLS):
        folder = fresh(f"kill-{kind}-{trial}")
        if kind == "recover":
            shutil.copytree(source, folder)
        after = rng.uniform(0.25, 1.0) * seconds
        process = run(arguments(folder), background=True)
        try:
            process.wait(after)
            killed = False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed = True
        run(arguments(folder), check=True)
        trials.append({"after": round(after, 2), "killed": killed, "identical": digests(folder) == expected})
        shutil.rmtree(folder)
    return {"undisturbed_seconds": round(seconds, 1), "trials": trials}


def files() -> dict:
    """Return the largest difference of logits between transformers with PEFT and jettison.load.

    In float32, over 20 windows of books.
    """
    return {"maxdiff": largest_difference(RUNS / NAME / "recovered")}


def largest_difference(folder: Path) -> float:
    """Return the largest difference of logits that ``files`` describes, for a folder."""
    windows = token_windows(ModelFolder("scribe"), "books-evaluation", 256, 20)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base(**base.dummy_inputs)  # the first call unpacks the weights
    theirs, ours = PeftModel.from_pretrained(base, folder / "adapter"), load(folder, dtype=torch.float32, exact=True)
    with torch.no_grad():
        return max(float((theirs(ids).logits - ours.logits(ids)).abs().max()) for ids in windows.split(4))


def fresh(name: str) -> Path:
    """Return a folder of runs/spine that does not exist; removes it if it does."""
    folder = RUNS / NAME / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def run(arguments: list[str], environment: dict | None = None, background: bool = False, check: bool = False):
    """Run a command of jettison.

    environment: variables that are added.
    background: return the started process instead of waiting for it.
    check: raise CalledProcessError if it fails.
    """
    command = [sys.executable, "-m", "jettison", *arguments]
    settings = {"env": os.environ | (environment or {}), "text": True, "cwd": ROOT}
    if background:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **settings)
    return subprocess.run(command, capture_output=True, check=check, **settings)


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of all files of a run, without logs and half-written files of a kill."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.name != "journal.jsonl" and path.suffix not in (".log", ".tmp")]
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(kept)}


def share(start: dict, recovered: dict, text: str) -> float:
    """Return the share of lost log-perplexity that recovery regains on a text."""
    log_ppl = lambda result: result["texts"][text]["log_perplexity"]
    lost = log_ppl(start["rounded"]) - log_ppl(start["original"])
    return (log_ppl(start["rounded"]) - log_ppl(recovered)) / lost


def main() -> None:
    """Compute all cells, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return check()
    start_cell = cell(NAME, "start", start)
    recovery_cell = cell(NAME, "recovery", recovery)
    demo_cell = cell(NAME, "demo", demo)
    killed = {kind: cell(NAME, f"kills-{kind}", lambda kind=kind: kills(kind)) for kind in ("compress", "recover")}
    files_cell = cell(NAME, "files", files)
    identical = sum(t["identical"] for kind in killed.values() for t in kind["trials"])
    size = recovery_cell["recovered"]["size"]
    claims = [
        claim("demo_minutes", demo_cell["minutes"], "min", "lower", 10, origin(demo_cell)),
        claim(
            "recovery_books",
            share(start_cell, recovery_cell["recovered"], "books-evaluation"),
            "",
            "higher",
            0.80,
            MISSED,
        ),
        claim(
            "recovery_wikitext2", share(start_cell, recovery_cell["recovered"], "wikitext2"), "", "higher", 0.70, MISSED
        ),
        claim("adapter_bits_per_weight", size["adapter_bits_per_weight"], "bits", "lower", 0.7, origin(recovery_cell)),
        claim("resume_identical", identical, "of 20", "equal", 2 * KILLS, origin(killed["recover"])),
        claim("transformers_logit_maxdiff", files_cell["maxdiff"], "", "lower", 1e-4, origin(files_cell)),
    ]
    stages = {"original": start_cell["original"], "rounded to nearest": start_cell["rounded"]}
    stages |= {"quantized (gptq, caldera)": recovery_cell["quantized"], "recovered": recovery_cell["recovered"]}
    rows = []
    for stage, result in stages.items():
        row = [stage, f"{result['size']['bytes'] / 1e6:.2f} MB", f"{result['size']['bits_per_weight']:.2f}"]
        for text in TEXTS:
            scores = result["texts"][text]
            row += [f"{scores['perplexity']:.2f}", f"{scores['kl']:.4f}"]
        rows.append(row)
    columns = ["scribe", "size", "bits/weight"]
    columns += ["books", "KL", "WikiText-2", "KL"]
    seconds = sum(result["seconds"] for result in (start_cell, recovery_cell, demo_cell, *killed.values(), files_cell))
    details = {
        "tables": {
            "W4/W2-GateUp with recovery (perplexity, and KL from the original)": {"columns": columns, "rows": rows}
        }
    }
    details |= {"start": start_cell, "recovery": recovery_cell, "demo": demo_cell, "kills": killed, "files": files_cell}
    write_result(NAME, claims, seconds, details, script=__file__)


def check() -> None:
    """Recompute the start, and compress and recover in little; compare with the result file; exits."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]
    checks = {}
    now = start()
    for stage in ("original", "rounded"):
        for text in TEXTS:
            values = [result[stage]["texts"][text]["log_perplexity"] for result in (now, recorded["start"])]
            checks[f"{stage}, {text}"] = (*values, 0.005)
    folder = fresh("check")
    compress("scribe", "gateup-w4w2", folder, changes=["quantize.group_size=64", *SMALL])
    recover(folder)
    size = evaluate(folder, texts=())["size"]["adapter_bits_per_weight"]
    checks["adapter bits per weight"] = (size, recorded["recovery"]["recovered"]["size"]["adapter_bits_per_weight"], 0)
    checks["transformers, largest difference"] = (largest_difference(folder), 0.0, 1e-4)
    compare(checks)


if __name__ == "__main__":
    main()
