"""Our packing of K types against that of llama-quantize, on scribe, at equal bytes.

    python -m benchmarks.formats_gguf          # about ten minutes; llama-quantize on the PATH, or in LLAMA_QUANTIZE
    python -m benchmarks.formats_gguf --check  # packs and evaluates Q4_K again

Every matrix takes the type, embedding and head included (``--pure``). Both are tried without and with the mean squares
of the inputs on calibration text, which llama-quantize reads as an importance matrix. Our reader decodes both files and
measures KL from scribe on all of the bundled texts, so that no engine's rounding of activations plays a part.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import torch

from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, write_result
from jettison.core.errors import UsageError
from jettison.domains.text.data import token_windows
from jettison.formats.gguf_file import write_gguf
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.outline import outline
from jettison.pipeline.evaluation import TEXTS, evaluate
from jettison.statistics.inputs import mean_squares

NAME, KINDS = "formats_gguf", ("Q2_K", "Q3_K", "Q4_K")
SAMPLES, LENGTH = 128, 256


def statistics() -> dict[str, torch.Tensor]:
    """Return the mean squares of the inputs of scribe's linears on calibration text."""
    source = ModelFolder("scribe")
    return mean_squares(source, token_windows(source, "books", LENGTH, SAMPLES))


def score(path: Path, report: dict) -> dict:
    """Return bytes and KL of a file."""
    texts = evaluate(path, teacher="scribe", tokens=None)["texts"]
    return {"bytes": path.stat().st_size, "kl": {name: texts[name]["kl"] for name in TEXTS}} | report


def ours(kind: str, weighted: bool) -> dict:
    """Pack scribe, and return the scores."""
    path = RUNS / NAME / f"ours-{kind}-{weighted}.gguf"
    report = write_gguf("scribe", path, kind, statistics() if weighted else None)
    return score(path, {"relative_error": report["relative_error"]})


def theirs(kind: str, weighted: bool) -> dict:
    """Quantize scribe with llama-quantize, and return the scores."""
    program = os.environ.get("LLAMA_QUANTIZE") or shutil.which("llama-quantize")
    if program is None:
        raise UsageError("there is no llama-quantize on the PATH, and LLAMA_QUANTIZE does not name one")
    whole, path = RUNS / NAME / "scribe.gguf", RUNS / NAME / f"theirs-{kind}-{weighted}.gguf"
    write_gguf("scribe", whole, "F32")
    options = ["--pure"]
    if weighted:
        options += ["--imatrix", str(write_importance(RUNS / NAME / "scribe.imatrix"))]
    subprocess.run([program, *options, str(whole), str(path), kind if kind == "Q2_K" else f"{kind}_S"], check=True)
    return score(path, {})


def write_importance(path: Path) -> Path:
    """Write mean squares as an importance matrix in the older, binary form that llama-quantize reads."""
    source, squares = ModelFolder("scribe"), statistics()
    keys = {linear.name: linear.inputs for linear in source.anatomy}
    rows = {
        part.name: squares[key]
        for part in outline(source, path).parts
        if part.part == "weight" and (key := keys.get(part.modules[0])) in squares
    }
    data = struct.pack("<i", len(rows))
    for name, values in rows.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(values))
        data += values.float().numpy().tobytes()
    path.write_bytes(data + struct.pack("<ii", 1, len("books")) + b"books")
    return path


def ratio(one: dict, other: dict) -> float:
    """Return the ratio of two KL on the books."""
    return round(one["kl"][TEXTS[0]] / other["kl"][TEXTS[0]], 4)


def main() -> None:
    """Compute all cells, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]["Q4_K, ours"]["kl"][TEXTS[0]]
        now = ours("Q4_K", weighted=False)["kl"][TEXTS[0]]
        return compare({"KL of Q4_K": (now, recorded, 0.001)})
    (RUNS / NAME).mkdir(parents=True, exist_ok=True)
    cells, claims, rows = {}, [], []
    for kind in KINDS:
        for weighted in (False, True):
            pair = {}
            for name, make in (("ours", ours), ("llama-quantize", theirs)):
                label = f"{kind}{', importance' if weighted else ''}, {name}"
                key = f"{name}-{kind}-{weighted}"
                pair[name] = cells[label] = cell(NAME, key, lambda make=make, k=kind, w=weighted: make(k, w))
                rows.append([label, f"{pair[name]['bytes']:,}", *(f"{pair[name]['kl'][text]:.4f}" for text in TEXTS)])
            id = f"{kind.lower().replace('_', '')}_{'imatrix_' if weighted else ''}kl_ratio"
            note = f"{pair['ours']['bytes']:,} and {pair['llama-quantize']['bytes']:,} bytes"
            claims.append(
                claim(id, ratio(pair["ours"], pair["llama-quantize"]), "ours / llama-quantize", "lower", 1.0, note)
            )
    table = {"columns": ["scribe", "bytes", *(f"KL, {text}" for text in TEXTS)], "rows": rows}
    details = {"tables": {"K types, all matrices": table}, "cells": cells}
    write_result(NAME, claims, sum(row["seconds"] for row in cells.values()), details, script=__file__)


if __name__ == "__main__":
    main()
