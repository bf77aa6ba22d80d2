"""The recovery study on scribe: one factor at a time changes from one setting.

    python -m benchmarks.recovery.study --books train.parquet  # about two hours on two cores; continues cell by cell
    python -m benchmarks.recovery.study --check                # recomputes the cells without recovery: five minutes

- The setting is that of spine.py in little. Gate and up have 2 bits (caldera, 10 iterations), all others 4 (gptq), in
  groups of 64. LoRA adapters of rank 8 and all scales are trained, once through 3,072 windows of 128 tokens that scribe
  wrote. Each cell changes one thing.
- Recovered: of the log-perplexity that plain rounding of the same linears loses, the share that is regained.
- ``--books`` is a parquet file with a column ``text``, one row per book, for the cells with real text.

Cells run in ``--workers`` processes of one thread: on two cores that is 1.3 times as fast as one process of two.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
from pathlib import Path

from benchmarks.witness import RESULTS, RUNS, cell, compare, write_result
from jettison.core.files import write_text
from jettison.core.progress import set_quiet
from jettison.domains.text.synthesize import synthesize
from jettison.graph.folder import ModelFolder
from jettison.metrics.share import recovered_share
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.recovery import recover

NAME = "study"
TEXTS = ("books-evaluation", "wikitext2")
FOLDER = RUNS / NAME
BOOKS = FOLDER / "books.txt"
BOOKS_EXCERPTS, EXCERPT = 160, 16_000  # number of books, characters of each
GATE_UP, OTHERS, MLP = ["gate", "up"], ["q", "k", "v", "o", "down", "head"], ["gate", "up", "down"]
ALL = [*GATE_UP, *OTHERS]
ATTENTION = ["q", "k", "v", "o"]


def quantize(method: str, bits: int, role: list[str], block: list | None = None, group_size: int = 64, **options):
    """Return a quantize step for these roles and, if given, these blocks."""
    where = {"role": role} | ({"block": block} if block else {})
    if method == "hqq":  # hqq chooses zero points
        options["symmetric"] = False
    return {"quantize": {"method": method, "bits": bits, "group_size": group_size, **options}, "where": where}


def layout(two: str, four: str, low=((GATE_UP, None),), **options) -> list[dict]:
    """Return the quantize steps that put some linears on 2 bits and all others on 4.

    two: method for 2 bits, in the places ``low``: (roles, blocks) each; blocks None means all.
    four: method for 4 bits, everywhere else.
    options: of both methods if they are the same, of ``two`` otherwise.
    """
    steps = [quantize(two, 2, role, block, **options) for role, block in low]
    for role in (["gate", "up"], ["down"], ATTENTION, ["head"]):
        taken = [block for roles, block in low if set(role) <= set(roles)]
        if None in taken:
            continue
        rest = [number for number in range(8) if not any(number in block for block in taken)]
        steps.append(quantize(four, 4, role, rest if taken else None, **(options if two == four else {})))
    return steps


def caldera(low=((GATE_UP, None),), rank: int = 8) -> list[dict]:
    """Return the quantize steps of the setting: caldera for 2 bits, gptq for 4."""
    return layout("caldera", "gptq", low, rank=rank, iterations=10)


def recovery(role: list[str] = GATE_UP, block: list | None = None, **changes) -> dict:
    """Return the recover step of the setting, with changes."""
    options = {"train": ["lora", "scales"], "rank": 8, "init": "svd", "samples": 3072, "length": 128, "batch": 8}
    where = {"role": role} | ({"block": block} if block else {})
    return {"recover": options | {"lr": 0.003, "scale_lr": 0.003} | changes, "where": where}


def setting(**changes) -> list[dict]:
    """Return all steps of the setting, with changes of its recover step."""
    return [*caldera(rank=changes.get("rank", 8)), recovery(**changes)]


MIDDLE, INNER = [2, 3, 4, 5], [1, 2, 3, 4, 5]
# factor -> cell -> steps. Cells with equally many weights in 2 bits, in different places, share a factor.
STUDY: dict[str, dict[str, list[dict]]] = {
    "rounding": {
        "rtn": layout("rtn", "rtn"),
        "rtn, full range": layout("rtn", "rtn", clip=False, symmetric=False),
    },
    "setting": {"the setting": setting(), "seed 1": setting(seed=1), "seed 2": setting(seed=2)},
    "method, no recovery": {
        "hqq": layout("hqq", "hqq"),
        "gptq": layout("gptq", "gptq"),
        "gptaq": layout("gptaq", "gptaq"),
    },
    "3 bits for gate and up, no recovery": {
        "w3 hqq g64": [quantize("hqq", 3, GATE_UP), quantize("hqq", 4, OTHERS)],
        "w3 gptq g128": [quantize("gptq", 3, GATE_UP, group_size=128), quantize("gptq", 4, OTHERS)],
        "w3 gptq g64": [quantize("gptq", 3, GATE_UP), quantize("gptq", 4, OTHERS)],
        "w3 gptaq g64": [quantize("gptaq", 3, GATE_UP), quantize("gptaq", 4, OTHERS)],
        "w3 gptaq g32": [quantize("gptaq", 3, GATE_UP, group_size=32), quantize("gptaq", 4, OTHERS)],
    },
    "data": {
        "books": setting(data=str(BOOKS)),
        "books, seed 1": setting(data=str(BOOKS), seed=1),
        "books, seed 2": setting(data=str(BOOKS), seed=2),
        "synthetic+books": setting(data=f"synthetic+{BOOKS}"),
        "bundled books, 5 times": setting(data="books", samples=614, epochs=5),
    },
    "trained": {
        "lora": setting(train=["lora"]),
        "scales (gptaq)": [*layout("gptaq", "gptaq"), recovery(train=["scales"])],
    },
    "rank": {f"rank {rank}": setting(rank=rank) for rank in (2, 4, 16, 32)},
    "2 bits for 1.6 million weights": {
        "down": [*caldera(((["down"], None),)), recovery(["down"])],
        "attention": [*caldera(((ATTENTION, None),), rank=5), recovery(ATTENTION, rank=5)],
        "gate and up of blocks 2-5": [*caldera(((GATE_UP, MIDDLE),)), recovery(GATE_UP, MIDDLE)],
    },
    "2 bits for 3.1 million weights": {
        "down and attention": [
            *caldera(((["down", *ATTENTION], None),), rank=6),
            recovery(["down", *ATTENTION], rank=6),
        ],
        "whole MLP of blocks 1-5": [*caldera(((MLP, INNER),)), recovery(MLP, INNER)],
    },
    "samples": {"1,024": setting(samples=1024), "10,240": setting(samples=10_240)},
    "start of the side paths": {
        "default (gptq)": [*layout("gptq", "gptq"), recovery(init="default")],
        "olora (gptq)": [*layout("gptq", "gptq"), recovery(init="olora")],
        "svd (gptq)": [*layout("gptq", "gptq"), recovery()],
    },
    "side paths on": {
        "all linears": [*caldera(), recovery(ALL)],
        "k and v": [*layout("gptq", "gptq"), recovery(["k", "v"])],
    },
    "temperature of the text": {
        "1": setting(text_temperatures=[1.0]),
        "1.5": setting(text_temperatures=[1.5]),
    },
    "temperature of the loss": {"2": setting(temperature=2.0)},
}

SEEDS = {
    "synthetic": ["setting: the setting", "setting: seed 1", "setting: seed 2"],
    "books": ["data: books", "data: books, seed 1", "data: books, seed 2"],
}
# These cells run last: they matter least if time runs out.
LAST = ("rank: rank 4", "rank: rank 16", "start of the side paths: olora (gptq)", "temperature of the text: 1.5")
LAST += ("temperature of the loss: 2", "data: bundled books, 5 times")
CELLS = {f"{factor}: {name}": steps for factor, cells in STUDY.items() for name, steps in cells.items()}


def run(key: str) -> dict:
    """Compute one cell: compress, recover if its steps do, measure. Returns the cell."""
    set_quiet(True)
    return cell(NAME, slug(key), lambda: measure(key))


def make(key: str) -> Path:
    """Return the compressed and recovered folder of a cell. A killed run continues."""
    folder = FOLDER / slug(key)
    compress("scribe", {"name": key, "calibration": {"text": "synthetic"}, "steps": CELLS[key]}, folder)
    if "recover" in CELLS[key][-1]:
        recover(folder)
    return folder


def measure(key: str) -> dict:
    """Evaluate the folder of a cell."""
    return evaluate(make(key), texts=TEXTS, tokens=None, windows=True)


def slug(key: str) -> str:
    """Return a key as a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-")


def write(text: dict) -> None:
    """Let scribe write a text that cells need, before they run: two workers must not write the same text at once."""
    set_quiet(True)
    synthesize(ModelFolder("scribe"), **text)


def texts_needed() -> list[dict]:
    """Return the arguments of ``synthesize`` for all texts that cells need, the longest first."""
    texts: dict[str, dict] = {"calibration": {"samples": 128, "length": 256, "seed": 0}}
    for steps in CELLS.values():
        options = steps[-1].get("recover", {})
        if "synthetic" in options.get("data", "synthetic") and options:
            text = {"length": options["length"], "seed": options.get("seed", 0)}
            text |= {"temperatures": options.get("text_temperatures", [1.0, 1.5])}
            longest = texts.setdefault(json.dumps(text), text | {"samples": 0})
            longest["samples"] = max(longest["samples"], options["samples"])
    return sorted(texts.values(), key=lambda text: -text["samples"])


def write_books(parquet: Path) -> None:
    """Write excerpts of so many books that they give more windows than a cell reads."""
    import pyarrow.parquet

    books = pyarrow.parquet.read_table(parquet, columns=["text"])["text"].to_pylist()
    chosen = [books[place * len(books) // BOOKS_EXCERPTS] for place in range(BOOKS_EXCERPTS)]
    middles = [book[len(book) // 2 :][:EXCERPT] for book in chosen]
    write_text(BOOKS, "\f\n".join(middles))


def original() -> dict:
    """Return the scores of scribe itself."""
    return cell(NAME, "original", lambda: evaluate("scribe", teacher="scribe", texts=TEXTS, tokens=None, windows=True))


def gains(measured: dict, before: dict, start: dict) -> dict:
    """Return loss and recovery of a cell, by text, each with its standard error over windows.

    measured: result of ``measure``.
    before: scores of the original.
    start: scores after plain rounding.
    ``lost`` is in nats per token; ``recovered`` is the share of the loss of plain rounding that this cell regains.
    """
    result = {"bytes": measured["size"]["bytes"], "bits_per_weight": measured["size"]["bits_per_weight"]}
    for text in TEXTS:
        scores = [[-loss for loss in model["texts"][text]["windows"]] for model in (before, start, measured)]
        lost = recovered_share(scores[0], scores[2], scores[2])
        share = recovered_share(*scores)
        result[text] = {
            "lost": lost.lost,
            "lost_error": lost.lost_error,
            "recovered": share.recovered,
            "recovered_error": share.recovered_error,
            "kl": measured["texts"][text]["kl"],
        }
    return result


def summarize(cells: dict[str, dict], before: dict) -> dict:
    """Return ``gains`` of every cell."""
    start = cells["rounding: rtn"]
    return {key: gains(scores, before, start) for key, scores in cells.items()}


def tables(summary: dict[str, dict]) -> dict:
    """Return the table of the results page."""
    columns = [
        "",
        "bytes",
        "bits/weight",
        "books: nats lost",
        "KL",
        "recovered",
        "WikiText-2: nats lost",
        "KL",
        "recovered",
    ]
    rows = []
    for key, gain in summary.items():
        row = [key, f"{gain['bytes'] / 1e6:.2f} MB", f"{gain['bits_per_weight']:.2f}"]
        for text in TEXTS:
            values = gain[text]
            row += [f"{values['lost']:.4f} ± {values['lost_error']:.4f}", f"{values['kl']:.4f}"]
            row += [f"{values['recovered']:.1%} ± {values['recovered_error']:.1%}" if comparable(key) else ""]
        rows.append(row)
    return {"The study (nats per token lost to the original, ± standard error)": {"columns": columns, "rows": rows}}


def comparable(key: str) -> bool:
    """Return whether the cell has the same start as plain rounding of gate and up to 2 bits."""
    return not key.startswith("2 bits for")


def spread(summary: dict[str, dict], names: list[str], text: str) -> tuple[float, float]:
    """Return the mean share recovered over seeds, and the standard error of that mean."""
    shares = [summary[name][text]["recovered"] for name in names]
    return statistics.mean(shares), statistics.stdev(shares) / len(shares) ** 0.5


def check() -> None:
    """Recompute the cells without recovery in scratch folders, and compare with the recorded ones; exits."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]
    checks, before = {}, evaluate("scribe", teacher="scribe", texts=TEXTS[:1], tokens=None)["texts"][TEXTS[0]]
    for key, steps in CELLS.items():
        if "recover" in steps[-1]:
            continue
        folder = FOLDER / f"check-{slug(key)}"
        shutil.rmtree(folder, ignore_errors=True)
        compress("scribe", {"name": key, "calibration": {"text": "synthetic"}, "steps": steps}, folder)
        now = evaluate(folder, texts=TEXTS[:1], tokens=None)["texts"][TEXTS[0]]
        checks[key] = (now["log_perplexity"] - before["log_perplexity"], recorded[key][TEXTS[0]]["lost"], 0.003)
    compare(checks)


def main() -> None:
    """Compute all cells in worker processes, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="a parquet file of books; needed once, for the cells with real text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the computed cells")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.summary:
        return write_summary()
    if not BOOKS.exists():
        if not arguments.books:
            parser.error("--books is needed: a parquet file with a column text, one row a book")
        write_books(arguments.books)
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers read it before they load torch
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=1) as pool:
        pool.map(write, texts_needed(), chunksize=1)
        pool.map(run, sorted(CELLS, key=lambda key: key in LAST), chunksize=1)
    write_summary()


def write_summary() -> None:
    """Write the result file from the computed cells."""
    files = {key: FOLDER / f"{slug(key)}.json" for key in CELLS}
    cells = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    summary = summarize(cells, original())
    seconds = sum(scores["seconds"] for scores in cells.values())
    details = {
        "tables": tables(summary),
        "missing": [key for key in CELLS if key not in cells],
        "cells": summary,
        "commits": sorted({c["commit"] for c in cells.values()}),
    }
    details["seeds"] = {text: {data: spread(summary, names, text) for data, names in SEEDS.items()} for text in TEXTS}
    write_result(NAME, [], seconds, details, script=__file__)


if __name__ == "__main__":
    main()
