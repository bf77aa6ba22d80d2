"""The recovery study on scribe: one factor at a time from one setting.

    python -m benchmarks.recovery.study --books train.parquet  # about two hours on two cores; continues cell by cell
    python -m benchmarks.recovery.study --check                # recomputes the cells without recovery: five minutes

The setting is the spine's in little: gate and up at 2 bits (caldera, 10 iterations), the rest at 4 (gptq), groups of
64; side paths of rank 8 and all scales learn from 3,072 windows of 128 tokens that scribe wrote, gone through once.
Each cell changes one thing. Recovered: the share of the log-perplexity lost by plain rounding of the same linears that
comes back. ``--books`` is a parquet file with a column ``text``, one row a book, for the cells with real text.

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
BOOKS_EXCERPTS, EXCERPT = 160, 16_000  # characters
GATE_UP, OTHERS, MLP = ["gate", "up"], ["q", "k", "v", "o", "down", "head"], ["gate", "up", "down"]
ALL = [*GATE_UP, *OTHERS]
ATTENTION = ["q", "k", "v", "o"]


def quantize(method: str, bits: int, role: list[str], block: list | None = None, group_size: int = 64, **options):
    where = {"role": role} | ({"block": block} if block else {})
    if method == "hqq":  # chooses zero points
        options["symmetric"] = False
    return {"quantize": {"method": method, "bits": bits, "group_size": group_size, **options}, "where": where}


def layout(two: str, four: str, low=((GATE_UP, None),), **options) -> list[dict]:
    """``two`` at 2 bits in the places ``low`` ((roles, blocks) each), ``four`` at 4 bits in all others. options: of
    both if they are the same method, of ``two`` otherwise."""
    steps = [quantize(two, 2, role, block, **options) for role, block in low]
    for role in (["gate", "up"], ["down"], ATTENTION, ["head"]):
        taken = [block for roles, block in low if set(role) <= set(roles)]
        if None in taken:
            continue
        free = [number for number in range(8) if not any(number in block for block in taken)]
        steps.append(quantize(four, 4, role, free if taken else None, **(options if two == four else {})))
    return steps


def caldera(low=((GATE_UP, None),), rank: int = 8) -> list[dict]:
    return layout("caldera", "gptq", low, rank=rank, iterations=10)


def recovery(role: list[str] = GATE_UP, block: list | None = None, **changes) -> dict:
    options = {"train": ["lora", "scales"], "rank": 8, "init": "svd", "samples": 3072, "length": 128, "batch": 8}
    where = {"role": role} | ({"block": block} if block else {})
    return {"recover": options | {"lr": 0.003, "scale_lr": 0.003} | changes, "where": where}


def setting(**changes) -> list[dict]:
    return [*caldera(rank=changes.get("rank", 8)), recovery(**changes)]


MIDDLE, INNER = [2, 3, 4, 5], [1, 2, 3, 4, 5]
# factor -> cell -> steps. Rows that save the same bytes of weights stand under one factor of place.
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
# Where time runs out, these are the ones to miss.
LAST = ("rank: rank 4", "rank: rank 16", "start of the side paths: olora (gptq)", "temperature of the text: 1.5")
LAST += ("temperature of the loss: 2", "data: bundled books, 5 times")
CELLS = {f"{factor}: {name}": steps for factor, cells in STUDY.items() for name, steps in cells.items()}


def run(key: str) -> dict:
    """One cell: compress, recover if its steps do, measure. Returns what cell() keeps."""
    set_quiet(True)
    return cell(NAME, slug(key), lambda: measure(key))


def make(key: str) -> Path:
    """The compressed and recovered folder of a cell. One that was killed goes on."""
    folder = FOLDER / slug(key)
    compress("scribe", {"name": key, "calibration": {"text": "synthetic"}, "steps": CELLS[key]}, folder)
    if "recover" in CELLS[key][-1]:
        recover(folder)
    return folder


def measure(key: str) -> dict:
    return evaluate(make(key), texts=TEXTS, tokens=None, windows=True)


def slug(key: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-")


def write(text: dict) -> None:
    """Let scribe write what the cells will ask for: two workers must not write the same text at once."""
    set_quiet(True)
    synthesize(ModelFolder("scribe"), **text)


def texts_needed() -> list[dict]:
    found: dict[str, dict] = {"calibration": {"samples": 128, "length": 256, "seed": 0}}
    for steps in CELLS.values():
        options = steps[-1].get("recover", {})
        if "synthetic" in options.get("data", "synthetic") and options:
            text = {"length": options["length"], "seed": options.get("seed", 0)}
            text |= {"temperatures": options.get("text_temperatures", [1.0, 1.5])}
            known = found.setdefault(json.dumps(text), text | {"samples": 0})
            known["samples"] = max(known["samples"], options["samples"])
    return sorted(found.values(), key=lambda text: -text["samples"])


def write_books(parquet: Path) -> None:
    """Excerpts of as many books as give more windows than a cell reads."""
    import pyarrow.parquet

    books = pyarrow.parquet.read_table(parquet, columns=["text"])["text"].to_pylist()
    chosen = [books[place * len(books) // BOOKS_EXCERPTS] for place in range(BOOKS_EXCERPTS)]
    middles = [book[len(book) // 2 :][:EXCERPT] for book in chosen]
    write_text(BOOKS, "\f\n".join(middles))


def original() -> dict:
    return cell(NAME, "original", lambda: evaluate("scribe", teacher="scribe", texts=TEXTS, tokens=None, windows=True))


def gains(found: dict, before: dict, start: dict) -> dict:
    """Of one cell, per text: nats per token lost to the original, and the share of what plain rounding loses that is
    not lost here, each with its standard error over windows."""
    result = {"bytes": found["size"]["bytes"], "bits_per_weight": found["size"]["bits_per_weight"]}
    for text in TEXTS:
        scores = [[-loss for loss in each["texts"][text]["windows"]] for each in (before, start, found)]
        lost = recovered_share(scores[0], scores[2], scores[2])
        share = recovered_share(*scores)
        result[text] = {
            "lost": lost.lost,
            "lost_error": lost.lost_error,
            "recovered": share.recovered,
            "recovered_error": share.recovered_error,
            "kl": found["texts"][text]["kl"],
        }
    return result


def summarize(cells: dict[str, dict], before: dict) -> dict:
    start = cells["rounding: rtn"]
    return {key: gains(found, before, start) for key, found in cells.items()}


def tables(summary: dict[str, dict]) -> dict:
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
    for key, found in summary.items():
        row = [key, f"{found['bytes'] / 1e6:.2f} MB", f"{found['bits_per_weight']:.2f}"]
        for text in TEXTS:
            of = found[text]
            row += [f"{of['lost']:.4f} ± {of['lost_error']:.4f}", f"{of['kl']:.4f}"]
            row += [f"{of['recovered']:.1%} ± {of['recovered_error']:.1%}" if comparable(key) else ""]
        rows.append(row)
    return {"The study (nats per token lost to the original, ± standard error)": {"columns": columns, "rows": rows}}


def comparable(key: str) -> bool:
    """Whether the cell starts from what plain rounding of gate and up to 2 bits loses."""
    return not key.startswith("2 bits for")


def spread(summary: dict[str, dict], names: list[str], text: str) -> tuple[float, float]:
    """Mean share recovered over seeds, and the standard error of that mean."""
    shares = [summary[name][text]["recovered"] for name in names]
    return statistics.mean(shares), statistics.stdev(shares) / len(shares) ** 0.5


def check() -> None:
    """Recompute the cells without recovery, in scratch folders, and compare with what is recorded."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]
    found, before = {}, evaluate("scribe", teacher="scribe", texts=TEXTS[:1], tokens=None)["texts"][TEXTS[0]]
    for key, steps in CELLS.items():
        if "recover" in steps[-1]:
            continue
        folder = FOLDER / f"check-{slug(key)}"
        shutil.rmtree(folder, ignore_errors=True)
        compress("scribe", {"name": key, "calibration": {"text": "synthetic"}, "steps": steps}, folder)
        now = evaluate(folder, texts=TEXTS[:1], tokens=None)["texts"][TEXTS[0]]
        found[key] = (now["log_perplexity"] - before["log_perplexity"], recorded[key][TEXTS[0]]["lost"], 0.003)
    compare(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="needed once, for the cells with real text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only write the result file, from the cells there are")
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
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which read it before they load torch
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=1) as pool:
        pool.map(write, texts_needed(), chunksize=1)
        pool.map(run, sorted(CELLS, key=lambda key: key in LAST), chunksize=1)
    write_summary()


def write_summary() -> None:
    """The result file, from the cells there are."""
    files = {key: FOLDER / f"{slug(key)}.json" for key in CELLS}
    cells = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    summary = summarize(cells, original())
    seconds = sum(found["seconds"] for found in cells.values())
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
