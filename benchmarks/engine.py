"""Whole tokens in the shape of Qwen3-4B, random weights: against the read limit, and 2-bit gate/up against 4 bits.

    python benchmarks/engine.py           # about ten minutes on 2 cores, 8 GB; other programs must rest
    python benchmarks/engine.py --check   # the shape of Qwen3-0.6B, and the agreement on scribe: a minute or two

W4 and W4/W2-GateUp, groups of 128, packed head: `jettison bench --shape qwen3-4b` in more detail.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from witness import RUNS, cell, claim, compare, write_result

from jettison.calibrate import token_windows
from jettison.compress import compress
from jettison.decode import load
from jettison.evaluate.decoding import measure_decoding
from jettison.evaluate.random_model import random_model
from jettison.models import open_shape
from jettison.recipe import load_recipe

NAME = "engine"
SHAPE, SMALL = "qwen3-4b", "qwen3-0.6b"
SHORT, LONG = 16, 4096
DRAFT = 5


def decoding(name: str, contexts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """W4, W4/W2-GateUp, and that with side paths of rank 8."""
    shape = open_shape(name)
    recipes = {recipe: load_recipe(recipe, ["quantize.group_size=128"]) for recipe in ("w4", "gateup-w4w2")}
    models = {recipe: random_model(shape, changed) for recipe, changed in recipes.items()}
    models["adapter"] = random_model(shape, recipes["gateup-w4w2"], adapter=True)
    return measure_decoding(models, contexts=contexts, rounds=rounds, drafts=(DRAFT,))


def agreement(tokens: int = 20 * 256) -> dict:
    """scribe under w4: the engine against the dequantized model in PyTorch."""
    compress("scribe", "w4", RUNS / NAME / "w4")
    exact, engine = load(RUNS / NAME / "w4", dtype=torch.float32, exact=True), load(RUNS / NAME / "w4").engine
    kl, same, count = 0.0, 0, 0
    for ids in token_windows(exact.tokenizer, "books-evaluation", 256, tokens // 256):
        expected = exact.logits(ids.unsqueeze(0))[0].log_softmax(-1)
        found = engine.session(256).append(ids.tolist(), every=True).log_softmax(-1)
        kl += float((expected.exp() * (expected - found)).sum())
        same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        count += len(ids)
    return {"kl": kl / count, "top1": same / count}


Kind = tuple[str, int, int]  # model, context, tokens at once


def ratio(rows: dict[Kind, dict], slower: Kind, faster: Kind) -> float:
    """The median over rounds of how many times faster."""
    pairs = zip(rows[slower]["samples"], rows[faster]["samples"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    start = time.perf_counter()
    if parser.parse_args().check:
        recorded, now = cell(NAME, "agreement", agreement), agreement()
        for row in decoding(SMALL, (SHORT,), 1)["rows"]:
            print(row)
        compare({"mean_kl": (now["kl"], recorded["kl"], 1e-4), "top1": (now["top1"], recorded["top1"], 0.005)})
    agreed, small = cell(NAME, "agreement", agreement), cell(NAME, SMALL, lambda: decoding(SMALL, (SHORT, LONG), 7))
    found = cell(NAME, SHAPE, lambda: decoding(SHAPE, (SHORT, 512, LONG), 7))
    rows: dict[Kind, dict] = {(row["model"], row["context"], row["at_once"]): row for row in found["rows"]}
    own = lambda context: [rows[model, context, 1]["share"] for model in ("w4", "gateup-w4w2")]
    speed = lambda context: ", ".join(
        f"{model} {rows[model, context, 1]['tokens_per_second']:.1f}" for model in ("w4", "gateup-w4w2", "adapter")
    )
    gateup = ("gateup-w4w2", SHORT, 1)
    write_result(
        NAME,
        [
            claim("gateup_vs_own_w4", ratio(rows, ("w4", SHORT, 1), gateup), "x", "higher", 1.15,
                  f"tokens/s after {SHORT} tokens: {speed(SHORT)}"),
            claim("gateup_vs_own_w4_4k", ratio(rows, ("w4", LONG, 1), ("gateup-w4w2", LONG, 1)), "x", "higher", 1.10,
                  f"tokens/s after {LONG} tokens: {speed(LONG)}"),
            claim("bandwidth_share", min(own(SHORT)), "", "higher", 0.85, "of the read limit, in weight bytes"),
            claim("share_4k", min(own(LONG)), "", "higher", 0.80, "of weights and cache; first attempt"),
            claim("adapter_cost_pct", 100 * (ratio(rows, ("adapter", SHORT, 1), gateup) - 1), "%", "lower", 5.0),
            claim("verify5_vs_decode1", ratio(rows, ("gateup-w4w2", SHORT, DRAFT), gateup), "x", "lower", 1.35),
            claim("top1_agreement", agreed["top1"], "", "higher", 0.99,
                  "scribe, w4, against dequantized PyTorch; first attempt, int8 activations"),
            claim("mean_kl", agreed["kl"], "nats", "lower", 0.001, "the same"),
        ],
        time.perf_counter() - start,
        {SHAPE: found, SMALL: small, "agreement": agreed},
    )  # fmt: skip


if __name__ == "__main__":
    main()
