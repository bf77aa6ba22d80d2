"""One-shot pruning, with and without SDS, and with as many steps of reconstruction without its dense stage.

    python benchmarks/fixtures/opt.py --books train.parquet    # the OPT-architecture model, ten minutes, once
    python benchmarks/sds.py                                   # about an hour on two cores; continues cell by cell
    python benchmarks/sds.py --cells 1                         # one more cell
    python benchmarks/sds.py --summary --block                 # what a block of a 1.7B model takes, one thread
    python benchmarks/sds.py --check                           # recomputes some cells, about four minutes

On scribe: four methods, each plain, with SDS, and with the control of equal budget (the method, then as many steps on
what it left as both stages of SDS take together, the mask chosen anew as in SDS); at 50 % and 70 % wherever, at 2:4 and
4:8. On the OPT-architecture fixture: two methods, 50 % and 2:4. Calibrated on 128 windows of 256 tokens of the bundled
books; measured on other books and on WikiText-2, 60 windows of 512 tokens each, and on the first items of every bundled
task. Settings were chosen on the windows of the calibration text that calibration leaves out and on WikiText-2's
validation text. Differences are paired, window by window and item by item; "better" means by more than two of their
standard errors.
"""

import argparse
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import sds_distance
import sparse_kernels
from sds_block import BASES, STEPS, block_cost, block_table, known_blocks
from witness import RESULTS, RUNS, cell, claim, compare, origin, write_result

from jettison.calibrate import token_windows
from jettison.compress import compress
from jettison.decode import load
from jettison.evaluate.quality import TEXTS, TOKENS, WINDOW
from jettison.evaluate.quality import compare as measure_text
from jettison.evaluate.tasks import evaluate_tasks
from jettison.progress import set_quiet

NAME = "sds"
FOLDER = RUNS / NAME
OPT = RUNS / "fixtures" / "opt"
ITEMS = 40  # of each task
PATTERNS = {"50 %": {"sparsity": 0.5}, "70 %": {"sparsity": 0.7}, "2:4": {"pattern": "2:4"}, "4:8": {"pattern": "4:8"}}
NAMES = {"scribe": "scribe", "opt": "The OPT-architecture fixture"}
VARIANTS = {
    "plain": None,
    "sds": {"dense_steps": STEPS, "second_steps": STEPS},
    "control": {"dense_steps": 0, "second_steps": 2 * STEPS},
}
ABLATIONS = {
    "no weight regularization": {"l1": 0.0, "l2": 0.0},
    "data of the dense model (DD)": {"data": "dd"},
    "target from the sparse model's inputs": {"share": 0.0},
    "no second adjustment": {"second_steps": 0},
    "mask held in the adjustment": {"rechoose": False},
    "control, mask held": {"dense_steps": 0, "second_steps": 2 * STEPS, "rechoose": False},
}
ATTEMPTS = (
    "Tried for SparseGPT and ALPS at 50 %, on text kept for choosing, 80 steps a stage: a ridge in proportion to each "
    "input's norm, half of the way to the original's outputs, no l1 and l2, the mask held, and statistics taken anew "
    "within a block after each group of its matrices; the last gains ALPS 0.006 nats on books, none gains anything on "
    "WikiText-2"
)
ABLATED = (("wanda", "2:4"), ("sparsegpt", "2:4"))
OPT_CELLS = [(base, pattern) for base in ("wanda", "sparsegpt") for pattern in ("50 %", "2:4")]


def step(base: str, pattern: str, changes: dict | None) -> dict:
    if changes is None:
        return {"method": base} | PATTERNS[pattern]
    return {"method": "sds", "base": base} | PATTERNS[pattern] | changes


def cells() -> dict[str, tuple[str, dict | None]]:
    """key -> model and the prune step; None for the model as it is. In the order in which they are worth having."""
    found: dict[str, tuple[str, dict | None]] = {"scribe: dense": ("scribe", None)}
    for variant, changes in VARIANTS.items():
        for pattern in PATTERNS:
            for base in BASES:
                found[f"scribe: {base} {pattern}, {variant}"] = ("scribe", step(base, pattern, changes))
    for base, pattern in ABLATED:
        for name, changes in ABLATIONS.items():
            found[f"scribe: {base} {pattern}, {name}"] = ("scribe", step(base, pattern, VARIANTS["sds"] | changes))
    found["opt: dense"] = (str(OPT), None)
    for base, pattern in OPT_CELLS:
        for variant, changes in VARIANTS.items():
            found[f"opt: {base} {pattern}, {variant}"] = (str(OPT), step(base, pattern, changes))
    return found


CELLS = cells()


def slug(key: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-")


def run(key: str) -> dict:
    return cell(NAME, slug(key), lambda: measure(*CELLS[key], FOLDER / slug(key)))


def measure(model: str, prune: dict | None, folder: Path) -> dict:
    """Log-perplexities of windows and scores of items, and what compressing took."""
    if prune is not None:
        manifest = compress(model, {"name": "prune", "steps": [{"prune": prune}]}, folder)
        zeros = [linear["zeros"] for block in manifest["blocks"] for linear in block["linears"].values()]
    loaded, texts = load(model if prune is None else folder), {}
    for text in TEXTS:
        windows = token_windows(loaded.tokenizer, text, WINDOW, TOKENS // WINDOW)
        texts[text] = measure_text(loaded, None, windows, text, keep=True)
    tasks = evaluate_tasks(model if prune is None else folder, items=ITEMS)
    scores = {task: found["scores"] for task, found in tasks.items()}
    if prune is not None:
        shutil.rmtree(folder)
    return {"texts": texts, "scores": scores, "zeros": None if prune is None else statistics.mean(zeros)}


DISTANT = {  # setting -> the base and SDS, whose distances from scribe are measured
    f"{base} {pattern}": tuple(slug(f"scribe: {base} {pattern}, {variant}") for variant in ("plain", "sds"))
    for pattern in PATTERNS
    for base in sds_distance.BASES
}


def measure_distances() -> None:
    sds_distance.confidence()
    steps = {slug(key): prune for key, (_, prune) in CELLS.items()}
    for name in (name for pair in DISTANT.values() for name in pair):
        sds_distance.distance(name, steps[name])


def gain(before: dict, after: dict, text: str) -> tuple[float, float]:
    """Log-perplexity that ``after`` is lower, in nats per token, and its standard error over windows."""
    pairs = zip(before["texts"][text]["windows"], after["texts"][text]["windows"], strict=True)
    return mean_and_error([one - other for one, other in pairs])


def points(before: dict, after: dict) -> tuple[float, float]:
    """Points of accuracy gained, mean over tasks, and the standard error over items."""
    means, errors = [], []
    for task in before["scores"]:
        sides = [[float(each) for each in result["scores"][task].split()] for result in (before, after)]
        mean, error = mean_and_error([100 * (new - old) for old, new in zip(*sides, strict=True)])
        means.append(mean)
        errors.append(error)
    return statistics.mean(means), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def better(pair: tuple[float, float]) -> bool:
    return pair[0] > 2 * pair[1]


def accuracy(result: dict) -> float:
    each = [statistics.mean(map(float, scores.split())) for scores in result["scores"].values()]
    return 100 * statistics.mean(each)


def row(name: str, found: dict) -> list[str]:
    perplexities = [f"{found['texts'][text]['perplexity']:.2f}" for text in TEXTS]
    return [name, *perplexities, f"{accuracy(found):.1f}"]


def shown(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.4f} ± {pair[1]:.4f}" + (
        " better" if better(pair) else " worse" if better((-pair[0], pair[1])) else ""
    )


def settings(have: dict[str, dict], model: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (base, pattern)
        for base, pattern in pairs
        if all(f"{model}: {base} {pattern}, {variant}" in have for variant in VARIANTS)
    ]


def tables(have: dict[str, dict]) -> dict:
    found = {}
    columns = ["", "books", "WikiText-2", "tasks, %"]
    for model, pairs in (("scribe", [(b, p) for p in PATTERNS for b in BASES]), ("opt", OPT_CELLS)):
        if f"{model}: dense" not in have:
            continue
        rows = [row("dense", have[f"{model}: dense"])]
        against = {"plain": [], "control": []}
        for base, pattern in settings(have, model, pairs):
            three = {variant: have[f"{model}: {base} {pattern}, {variant}"] for variant in VARIANTS}
            rows += [row(f"{base} {pattern}" + ("" if v == "plain" else f", {v}"), three[v]) for v in VARIANTS]
            for other, lines in against.items():
                gains = [shown(gain(three[other], three["sds"], text)) for text in TEXTS]
                lines.append(
                    [f"{base} {pattern}", *gains, "{:+.2f} ± {:.2f}".format(*points(three[other], three["sds"]))]
                )
        found[f"{NAMES[model]}: perplexity and mean accuracy"] = {"columns": columns, "rows": rows}
        gained = ["", "books, nats", "WikiText-2, nats", "tasks, points"]
        found[f"{NAMES[model]}: what SDS gains over its base"] = {"columns": gained, "rows": against["plain"]}
        found[f"{NAMES[model]}: what SDS gains over the control of equal budget"] = {
            "columns": gained,
            "rows": against["control"],
        }
    for base, pattern in ABLATED:
        start = f"scribe: {base} {pattern}, "
        if f"{start}sds" in have:
            names = [name for name in ABLATIONS if start + name in have]
            rows = [[*row("SDS", have[f"{start}sds"]), "", ""]]
            for name in names:
                gains = [shown(gain(have[f"{start}sds"], have[start + name], text)) for text in TEXTS]
                rows.append(row(name, have[start + name]) + gains)
            head = [*columns, "books, nats gained", "WikiText-2, nats gained"]
            found[f"Ablations at {base} {pattern}"] = {"columns": head, "rows": rows}
    return found


def claims(have: dict[str, dict]) -> tuple[list[dict], dict]:
    pairs = settings(have, "scribe", [(base, pattern) for pattern in PATTERNS for base in BASES])
    wins: dict[str, dict[str, list[str]]] = {}
    gained = []
    for base, pattern in pairs:
        three = {variant: have[f"scribe: {base} {pattern}, {variant}"] for variant in VARIANTS}
        for other in ("plain", "control"):
            texts = {text: gain(three[other], three["sds"], text) for text in TEXTS}
            for kind, won in (
                ("both", all(map(better, texts.values()))),
                *((text, better(texts[text])) for text in TEXTS),
                ("lost on books", better((-texts[TEXTS[0]][0], texts[TEXTS[0]][1]))),
                ("lost on WikiText-2", better((-texts[TEXTS[1]][0], texts[TEXTS[1]][1]))),
            ):
                wins.setdefault(other, {}).setdefault(kind, []).extend([f"{base} {pattern}"] * won)
        gained.append(points(three["plain"], three["sds"]))
    if not pairs:
        return [], {}
    count = lambda other, kind: len(wins[other][kind])
    named = lambda names: ", ".join(names) or "none"
    mean = statistics.mean(each for each, _ in gained)
    error = math.sqrt(sum(e**2 for _, e in gained)) / len(gained)
    short = "" if len(pairs) == 16 else f"; of {len(pairs)} settings measured"
    rest = [f"{base} {pattern}" for base, pattern in pairs if f"{base} {pattern}" not in wins["plain"]["both"]]
    control = wins["control"]
    attempts = "".join(f". {sentence}" for sentence in (sds_distance.told(DISTANT), ATTEMPTS) if sentence)
    found = [
        claim(
            "sds_wins", count("plain", "both"), "of 16", "higher", 14,
            f"better than its base by more than two standard errors on books and on WikiText-2 (on books alone "
            f"{count('plain', TEXTS[0])}, on WikiText-2 alone {count('plain', TEXTS[1])}); not: {named(rest)}{short}"
            + attempts,
        ),
        claim("sds_settings", len(pairs), "settings", "equal", 16, "four methods, four patterns"),
        claim(
            "sds_beats_equal_budget", count("control", "both"), "of 16", "higher", 9,
            f"better than the control on both texts; on books {count('control', TEXTS[0])}, on WikiText-2 "
            f"{count('control', TEXTS[1])}. The control is better on books at {named(control['lost on books'])}, on "
            f"WikiText-2 at {named(control['lost on WikiText-2'])}{short}",
        ),
        claim(
            "task_points_gained_mean", round(mean, 3), "points", "higher", 0.5,
            f"± {error:.2f}, mean over the 22 bundled tasks, {ITEMS} items each, and the settings{short}",
        ),
    ]  # fmt: skip
    return found, wins


def speed_claims() -> list[dict]:
    """What benchmarks/sparse_kernels.py measured of 2:4 with 4 bits, once it has been run."""
    files = [RUNS / sparse_kernels.NAME / f"{key}.json" for key in ("products", "tokens")]
    if not all(file.exists() for file in files):
        return []
    measured = [json.loads(file.read_text()) for file in files]
    found = [each for each in sparse_kernels.claims(*measured) if each["id"].startswith("sparse24_w4")]
    for each, result in zip(found, measured, strict=True):  # per linear, end to end
        each["note"] = "; ".join(filter(None, [f"by benchmarks/sparse_kernels.py: {each['note']}", origin(result)]))
    return found


def check() -> None:
    """Recompute three cells in scratch folders, on books, and compare with what is recorded."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]
    found = {}
    for key in ("scribe: magnitude 2:4, plain", "scribe: alps 2:4, plain", "scribe: wanda 2:4, sds"):
        folder = FOLDER / f"check-{slug(key)}"
        shutil.rmtree(folder, ignore_errors=True)
        compress("scribe", {"name": "prune", "steps": [{"prune": CELLS[key][1]}]}, folder)
        loaded = load(folder)
        windows = token_windows(loaded.tokenizer, TEXTS[0], WINDOW, TOKENS // WINDOW)
        now = measure_text(loaded, None, windows, TEXTS[0])["log_perplexity"]
        found[key] = (now, recorded[key]["texts"][TEXTS[0]]["log_perplexity"], 0.005)
    compare(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="compute so many more, then write what there is")
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the cells there are")
    parser.add_argument("--block", action="store_true", help="measure what a block of a 1.7B model takes")
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
    """Without windows and items; with what is lost against the model as it was, in nats per token."""
    texts = {text: {k: v for k, v in of.items() if k != "windows"} for text, of in result["texts"].items()}
    for text in texts if dense else ():
        mean, error = gain(result, dense, text)
        texts[text] |= {"lost": round(mean, 6), "lost_error": round(error, 6)}
    rest = {name: result[name] for name in ("zeros", "seconds")}
    return {"texts": texts, "tasks": round(accuracy(result), 3)} | rest


def write_summary() -> None:
    files = {key: FOLDER / f"{slug(key)}.json" for key in CELLS}
    have = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    blocks = known_blocks()
    found, wins = claims(have)
    found += speed_claims()
    brief = {key: _brief(result, have.get(f"{key.partition(':')[0]}: dense")) for key, result in have.items()}
    details = {
        "tables": tables(have) | sds_distance.tables(DISTANT) | block_table(blocks),
        "block": blocks,
        "wins": wins,
        "cells": brief,
        "missing": [key for key in CELLS if key not in have],
    }
    details["commits"] = sorted({of["commit"] for of in have.values()})
    write_result(NAME, found, sum(of["seconds"] for of in have.values()), details)


if __name__ == "__main__":
    main()
