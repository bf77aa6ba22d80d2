"""The CPU kernels against the read limit, against peers, and against exact arithmetic.

    pip install 'jettison[onnx]'      # the peer that PyTorch does not bring
    python -m benchmarks.kernels.cpu  # about fifteen minutes on 2 cores; other programs must rest
    python -m benchmarks.kernels.cpu --check

The matrices are those of Qwen3-4B; distinct weights are streamed, so that no cache holds them. ``kernel`` is the C++
function as the native decoder calls it; shares of the read limit are those of ``kernel``. ``jettison`` is the operator
as PyTorch calls it; it is compared with the peers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import plotly.graph_objects as go
import torch

from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, write_result
from jettison.bench.operators import linear_shapes, measure_operators, random_tiles
from jettison.domains.text.data import token_windows
from jettison.domains.text.scores import compare as compare_models
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import open_shape
from jettison.kernels import native
from jettison.kernels.tiles import Tiling, dense
from jettison.pipeline.compression import compress
from jettison.runtime.load import load

NAME = "kernels"  # of the result; a script of this name would hide a package that transformers looks up
SHAPES = linear_shapes(open_shape("qwen3-4b"))
PRESETS = ("w8", "w4", "w3")
WINDOWS = 40


def errors() -> dict:
    """Return relative errors by bits and matrix, against float64 on the dequantized weight.

    Activations are normally distributed.
    """
    relative = {}
    for bits in (2, 4):
        for shape, (rows, columns) in SHAPES.items():
            tiling = Tiling.of(UniformGrid(bits, 128), rows, columns)
            tiles, inputs = random_tiles(tiling, 1)[0], torch.randn(4, columns)
            exact = inputs.double() @ dense(tiles, None, tiling).double().T
            relative[f"{bits} {shape}"] = (
                (native.linear(inputs, tiles, None, None, tiling) - exact).norm() / exact.norm()
            ).item()
    return relative


def quality() -> dict:
    """Return what int8 activations cost scribe: KL to the original and log-perplexity, exact and in the kernels."""
    original, costs = load("scribe"), {}
    windows = token_windows(original.source, "books-evaluation", 512, WINDOWS)
    for preset in PRESETS:
        compress("scribe", preset, RUNS / NAME / preset)
        for way in ("exact", "kernels"):
            model = load(RUNS / NAME / preset, exact=way == "exact")
            measured = compare_models(model.logits, original.logits, windows, "books-evaluation")
            costs[f"{preset} {way}"] = {"kl": measured["kl"], "log_perplexity": measured["log_perplexity"]}
    return costs


def pick(rows: Iterable[dict], operator: str, bits: int, count: int = 1) -> dict[str, dict]:
    """Return shape -> row, of an operator, a number of bits and a number of activation rows."""
    chosen = (row for row in rows if (row["operator"], row["bits"], row["rows"]) == (operator, bits, count))
    return {row["shape"]: row for row in chosen}


def ratios(slower: dict[str, dict], faster: dict[str, dict]) -> dict[str, float]:
    """Return how many times faster, by shape: the median over rounds of the ratio within a round."""
    return {
        shape: statistics.median(a / b for a, b in zip(slower[shape]["samples"], faster[shape]["samples"], strict=True))
        for shape in faster
    }


def draw(rows: list[dict], file: Path) -> None:
    """Draw shares of the read limit: a group of bars for each operator and number of bits, a bar for each matrix."""
    names = {"kernel": "Jettison, kernel", "jettison": "Jettison, operator"}
    operators = [("kernel", 2), ("jettison", 2), ("onnxruntime", 2), ("kernel", 4), ("jettison", 4), ("onnxruntime", 4)]
    operators += [("torch int4pack", 4)]
    labels = [[f"{bits} bits" for _, bits in operators], [names.get(name, name) for name, _ in operators]]
    figure = go.Figure()
    for shape, colour in zip(
        ("gate/up", "down", "qkv", "o"), ("#1f4e79", "#2e86c1", "#7fb3d5", "#c5d9e8"), strict=True
    ):
        shares = [pick(rows, *operator)[shape]["share"] for operator in operators]
        figure.add_bar(x=labels, y=shares, name=shape, marker_color=colour)
    figure.add_hline(y=1, line_dash="dot", annotation_text="what this machine can read")
    figure.update_layout(
        template="plotly_white", width=1180, height=460, yaxis_title="share of the read limit", yaxis_range=[0, 1.15],
        title="Qwen3-4B's matrices times one row of activations, 2 threads", font_family="sans-serif", bargap=0.25,
    )  # fmt: skip
    figure.write_html(file, include_plotlyjs=True, config={"displayModeBar": False})


def note(by_shape: dict[str, float]) -> str:
    """Format values by shape, for a note."""
    return ", ".join(f"{shape} {value:.2f}" for shape, value in by_shape.items())


def main() -> None:
    """Measure operators, errors and quality, and write the result; or check, or only draw, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure decoding again, in fewer rounds, and compare")
    parser.add_argument("--picture", type=Path, help="only draw the recorded result, as a page at this path")
    start, arguments = time.perf_counter(), parser.parse_args()
    if arguments.picture:
        return draw(json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["decode"]["rows"], arguments.picture)
    if arguments.check:
        recorded = cell(NAME, "decode", lambda: measure_operators(SHAPES, rounds=9))["rows"]
        now = measure_operators(SHAPES, rounds=3, peers=())["rows"]
        pairs = {
            bits: [min(row["share"] for row in pick(of, "kernel", bits).values()) for of in (now, recorded)]
            for bits in (4, 2)
        }
        compare({f"w{bits}_share_min": (*pair, 0.12) for bits, pair in pairs.items()})
    decode = cell(NAME, "decode", lambda: measure_operators(SHAPES, rounds=9))
    several = cell(NAME, "rows", lambda: measure_operators(SHAPES, counts=(1, 5, 16), peers=(), rounds=7))
    prefill = cell(NAME, "prefill", lambda: measure_operators(SHAPES, counts=(512,), peers=("bfloat16",), rounds=5))
    error, costs = cell(NAME, "errors", errors), cell(NAME, "quality", quality)

    rows = decode["rows"]
    own, kernel = ({bits: pick(rows, name, bits) for bits in (4, 2)} for name in ("jettison", "kernel"))
    ort = {bits: ratios(pick(rows, "onnxruntime", bits), own[bits]) for bits in (4, 2)}
    int4pack = ratios(pick(rows, "torch int4pack", 4), own[4])
    shares = {bits: {shape: row["share"] for shape, row in kernel[bits].items()} for bits in (4, 2)}
    two_to_four = ratios(kernel[4], kernel[2])
    five = ratios(pick(several["rows"], "kernel", 4, 5), pick(several["rows"], "kernel", 4, 1))
    prefill_ratios = ratios(pick(prefill["rows"], "torch bfloat16", 16, 512), pick(prefill["rows"], "jettison", 4, 512))
    worst = max(value for key, value in error.items() if key.split()[-1] in SHAPES)
    cost = max(costs[f"{preset} kernels"]["kl"] - costs[f"{preset} exact"]["kl"] for preset in PRESETS)
    write_result(
        NAME,
        [
            claim("w4_share_min", min(shares[4].values()), "", "higher", 0.85, f"of the read limit: {note(shares[4])}"),
            claim("w2_share_min", min(shares[2].values()), "", "higher", 0.80, f"of the read limit: {note(shares[2])}"),
            claim("w2_vs_w4_gateup", two_to_four["gate/up"], "x", "higher", 1.5, "the bytes allow 1.94"),
            claim("op_w2_vs_ort_min", min(ort[2].values()), "x", "higher", 1.0, note(ort[2])),
            claim("op_w4_vs_ort_min", min(ort[4].values()), "x", "higher", 1.0, note(ort[4])),
            claim("op_w4_vs_torch_min", min(int4pack.values()), "x", "higher", 1.0, note(int4pack)),
            claim("rows5_vs_rows1", max(five.values()), "x", "lower", 1.3, f"4 bits: {note(five)}"),
            claim("prefill512_vs_bf16", min(prefill_ratios.values()), "x", "higher", 1.0,
                  f"against oneDNN in bfloat16 alone, dequantizing not counted: {note(prefill_ratios)}"),
            claim("relative_error_max", worst, "", "lower", 0.01, "against float64 on the dequantized weight"),
            claim("int8_activations_kl_max", cost, "nats", "lower", 0.001, f"scribe, books, {', '.join(PRESETS)}"),
        ],
        time.perf_counter() - start,
        {"decode": decode, "rows": several, "prefill": prefill, "errors": error, "quality": costs},
        script=__file__,
    )  # fmt: skip


if __name__ == "__main__":
    main()
