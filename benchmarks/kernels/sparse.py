"""2:4 sparsity (two of each four columns) in the CPU kernels, against dense weights of the same bits. Random weights.

    python -m benchmarks.kernels.sparse          # about five minutes on 2 cores; other programs must rest
    python -m benchmarks.kernels.sparse --check  # one matrix, a few seconds

`python -m benchmarks.sds.study --summary` then copies the claims for 4 bits into its own results.
Measured are the matrices of Qwen3-1.7B in groups of 128 with one row of activations, then whole tokens in the shape of
that model with a packed dense head.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from benchmarks.witness import RESULTS, cell, claim, compare, write_result
from jettison.bench.decoding import measure_decoding
from jettison.bench.operators import READ_BYTES, STREAMED, linear_shapes, random_tiles, read_limit
from jettison.bench.random_model import random_model
from jettison.core.timing import sample
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import open_shape
from jettison.kernels import native
from jettison.kernels.tiles import Tiling
from jettison.recipe.recipe import load_recipe

NAME, SHAPE, CONTEXT = "sparse_kernels", "qwen3-1.7b", 16
BITS = (4, 8)


def products(shapes: dict[str, tuple[int, int]], rounds: int) -> dict[str, Any]:
    """Return dense and sparse samples in seconds, interleaved, with bytes and shares of the read limit."""
    data, rows = torch.ones(READ_BYTES // 4), []
    for name, (height, width) in shapes.items():
        for bits in BITS:
            kinds = {
                kind: Tiling.of(UniformGrid(bits, 128), height, width, kind == "sparse") for kind in ("dense", "sparse")
            }
            row: dict[str, Any] = {"matrix": name, "bits": bits}
            runs = {}
            for kind, tiling in kinds.items():
                size = tiling.tiles_shape[0] * tiling.tiles_shape[1] * tiling.tiles_shape[2]
                tiles = random_tiles(tiling, max(2, -(-STREAMED // size)))  # enough copies that no cache holds them
                multiply = native.prepared(torch.randn(1, width), tiling, torch.empty(1, height))
                runs[kind] = (multiply, tiles, size)
                row[kind] = {"bytes": size, "seconds": [], "shares": []}
            for _ in range(rounds):
                for kind, (multiply, tiles, size) in runs.items():
                    run = lambda multiply=multiply, tiles=tiles, size=size: [
                        multiply(t.data_ptr(), size) for t in tiles
                    ]
                    limit = read_limit(data)
                    seconds = sample(run)[0] / len(tiles)
                    row[kind]["seconds"].append(seconds)
                    row[kind]["shares"].append(size / seconds / limit)
            pairs = zip(row["dense"]["seconds"], row["sparse"]["seconds"], strict=True)
            row["times_as_fast"] = statistics.median(dense / sparse for dense, sparse in pairs)
            row["bytes_allow"] = row["dense"]["bytes"] / row["sparse"]["bytes"]
            rows.append(row)
    return {"rows": rows}


def tokens() -> dict[str, Any]:
    """Measure decoding of whole tokens, dense and sparse."""
    shape, recipe = open_shape(SHAPE), load_recipe("w4", ["quantize.group_size=128"])
    models = {kind: random_model(shape, recipe, sparse=kind == "sparse") for kind in ("dense", "sparse")}
    return measure_decoding(models, contexts=(CONTEXT,), rounds=9)


def claims(measured: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the claims. measured: result of ``products``; whole: result of ``tokens``."""
    rows_of = lambda bits: [row for row in measured["rows"] if row["bits"] == bits]
    least = lambda bits: min(row["times_as_fast"] for row in rows_of(bits))
    by_matrix = lambda bits: "; ".join(
        f"{row['matrix']} {row['times_as_fast']:.2f} of {row['bytes_allow']:.2f}, at "
        f"{statistics.median(row['sparse']['shares']):.2f} of the read limit" for row in rows_of(bits))  # fmt: skip
    rows = {row["model"]: row for row in whole["rows"]}
    pairs = zip(rows["dense"]["samples"], rows["sparse"]["samples"], strict=True)
    both = ", ".join(
        f"{name} {row['tokens_per_second']:.1f} tokens/s at {row['share']:.2f} of the read limit"
        for name, row in rows.items()
    )
    allowed = whole["bytes"]["dense"] / whole["bytes"]["sparse"]
    faster = statistics.median(dense / sparse for dense, sparse in pairs)
    return [
        claim("sparse24_w4_per_linear", least(4), "x", "higher", 1.15, by_matrix(4)),
        claim("sparse24_w8_per_linear", least(8), "x", "higher", 1.15, by_matrix(8)),
        claim("sparse24_w4_end_to_end", faster, "x", "higher", 1.08, f"{SHAPE}: {both}; the bytes allow {allowed:.2f}"),
    ]


def main() -> None:
    """Measure products and tokens, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    start, shapes = time.perf_counter(), linear_shapes(open_shape(SHAPE))
    if parser.parse_args().check:
        recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["products"]["rows"]
        name = recorded[0]["matrix"]
        now = products({name: shapes[name]}, 3)["rows"]
        compare({
            f"{name}, {row['bits']} bits": (row["times_as_fast"], before["times_as_fast"], 0.2)
            for row, before in zip(now, recorded, strict=False)
        })  # fmt: skip
    measured, decoded = cell(NAME, "products", lambda: products(shapes, 5)), cell(NAME, "tokens", tokens)
    seconds = time.perf_counter() - start
    write_result(NAME, claims(measured, decoded), seconds, {"products": measured, "tokens": decoded}, script=__file__)


if __name__ == "__main__":
    main()
