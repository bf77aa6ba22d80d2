"""One-shot pruning, with and without SDS, and with as many steps of reconstruction without the dense stage of SDS.

    python -m benchmarks.fixtures.opt --books train.parquet  # the OPT-architecture model, ten minutes, once
    python -m benchmarks.sds.study                           # about four hours on one core; continues cell by cell
    python -m benchmarks.sds.study --cells 1                 # one more cell
    python -m benchmarks.sds.study --summary --block         # the cost of a block of a 1.7B model, one thread
    python -m benchmarks.sds.study --check                   # recomputes some cells, about four minutes

- On scribe: four methods, at 50 % and 70 % unstructured, at 2:4 and at 4:8. Each runs plain, with SDS, and with two
  controls of equal budget. A control is the method followed by as many steps on its result as both stages of SDS take
  together. In one control the mask is chosen anew, as in SDS; in the other it stays as the method left it.
- On the OPT-architecture fixture: two methods, 50 % and 2:4.
- Calibration: 128 windows of 256 tokens of the bundled books.
- Measured on other books and on WikiText-2, 60 windows of 512 tokens each, and on the first items of every bundled
  task.
- Settings were chosen on windows of the calibration text that calibration leaves out, and on WikiText-2's validation
  text.
- Differences are paired, window by window and item by item; "better" means by more than two of their standard errors.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

from benchmarks.kernels import sparse
from benchmarks.sds import distance
from benchmarks.sds.block import block_cost, block_table, known_blocks
from benchmarks.sds.cells import CELLS, DISTANT, FOLDER, ITEMS, NAME, OPT, slug
from benchmarks.sds.tables import accuracy, claims, gain, tables
from benchmarks.witness import RESULTS, RUNS, cell, compare, origin, write_result
from jettison.core.progress import set_quiet
from jettison.domains.text.data import token_windows
from jettison.domains.text.domain import WINDOW
from jettison.domains.text.scores import compare as measure_text
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import TEXTS, TOKENS
from jettison.pipeline.tasks import evaluate_tasks
from jettison.runtime.load import load


def run(key: str) -> dict:
    """Compute a cell, or read it if it has been computed."""
    return cell(NAME, slug(key), lambda: measure(*CELLS[key], FOLDER / slug(key)))


def measure(model: str, prune: dict | None, folder: Path) -> dict:
    """Prune a model and measure it.

    prune: the prune step; None measures the model as it is.
    Returns the log-perplexities of windows, the scores of items, and the mean share of zeros.
    """
    if prune is not None:
        manifest = compress(model, {"name": "prune", "steps": [{"prune": prune}]}, folder)
        zeros = [linear["zeros"] for block in manifest["blocks"] for linear in block["linears"].values()]
    loaded, texts = load(model if prune is None else folder), {}
    for text in TEXTS:
        windows = token_windows(loaded.source, text, WINDOW, TOKENS // WINDOW)
        texts[text] = measure_text(loaded.logits, None, windows, text, keep=True)
    tasks = evaluate_tasks(model if prune is None else folder, items=ITEMS)
    scores = {task: result["scores"] for task, result in tasks.items()}
    if prune is not None:
        shutil.rmtree(folder)
    return {"texts": texts, "scores": scores, "zeros": None if prune is None else statistics.mean(zeros)}


def measure_distances() -> None:
    """Compute the cells of distance.py."""
    distance.confidence()
    steps = {slug(key): prune for key, (_, prune) in CELLS.items()}
    for name in (name for variants in DISTANT.values() for name in variants.values()):
        distance.distance(name, steps[name])


def speed_claims() -> list[dict]:
    """Return what benchmarks/kernels/sparse.py measured of 2:4 with 4 bits; empty until it has been run."""
    files = [RUNS / sparse.NAME / f"{key}.json" for key in ("products", "tokens")]
    if not all(file.exists() for file in files):
        return []
    measured = [json.loads(file.read_text()) for file in files]
    entries = [entry for entry in sparse.claims(*measured) if entry["id"].startswith("sparse24_w4")]
    for entry, result in zip(entries, measured, strict=True):  # per linear, end to end
        entry["note"] = "; ".join(filter(None, [f"by benchmarks/kernels/sparse.py: {entry['note']}", origin(result)]))
    return entries


def check() -> None:
    """Recompute three cells in scratch folders, on books, and compare them with the recorded ones; exits."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]
    checks = {}
    for key in ("scribe: magnitude 2:4, plain", "scribe: alps 2:4, plain", "scribe: wanda 2:4, sds"):
        folder = FOLDER / f"check-{slug(key)}"
        shutil.rmtree(folder, ignore_errors=True)
        compress("scribe", {"name": "prune", "steps": [{"prune": CELLS[key][1]}]}, folder)
        loaded = load(folder)
        windows = token_windows(loaded.source, TEXTS[0], WINDOW, TOKENS // WINDOW)
        now = measure_text(loaded.logits, None, windows, TEXTS[0])["log_perplexity"]
        checks[key] = (now, recorded[key]["texts"][TEXTS[0]]["log_perplexity"], 0.005)
    compare(checks)


def main() -> None:
    """Compute the cells that the command line asks for, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="compute this many more cells, then write the result")
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the computed cells")
    parser.add_argument("--block", action="store_true", help="measure the cost of a block of a 1.7B model")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    set_quiet(True)
    if arguments.check:
        return check()
    missing = [key for key in CELLS if not (FOLDER / f"{slug(key)}.json").exists()]
    missing = [key for key in missing if CELLS[key][0] == "scribe" or (OPT / "config.json").exists()]
    for key in missing[: 0 if arguments.summary else arguments.cells]:
        run(key)
    if not (arguments.summary or arguments.cells):
        measure_distances()
    if arguments.block or not (arguments.summary or arguments.cells):
        block_cost()
    write_summary()


def _brief(result: dict, dense: dict | None) -> dict:
    """Return a cell without windows and items, with its loss against the dense model.

    ``lost`` and ``lost_error`` are in nats per token.
    """
    texts = {text: {"log_perplexity": of["log_perplexity"]} for text, of in result["texts"].items()}
    for text in texts if dense else ():
        mean, error = gain(result, dense, text)
        texts[text] |= {"lost": round(mean, 6), "lost_error": round(error, 6)}
    rest = {name: result[name] for name in ("zeros", "seconds")}
    return {"texts": texts, "tasks": round(accuracy(result), 3)} | rest


def write_summary() -> None:
    """Write the result file from the cells that have been computed."""
    files = {key: FOLDER / f"{slug(key)}.json" for key in CELLS}
    computed = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    blocks = known_blocks()
    entries, wins = claims(computed)
    entries += speed_claims()
    brief = {key: _brief(result, computed.get(f"{key.partition(':')[0]}: dense")) for key, result in computed.items()}
    details = {
        "tables": tables(computed) | distance.tables(DISTANT) | block_table(blocks),
        "block": blocks,
        "wins": wins,
        "cells": brief,
        "missing": [key for key in CELLS if key not in computed],
    }
    details["commits"] = sorted({of["commit"] for of in computed.values()})
    write_result(NAME, entries, sum(of["seconds"] for of in computed.values()), details, script=__file__)


if __name__ == "__main__":
    main()
