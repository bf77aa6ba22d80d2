"""Whole tokens in the shape of Qwen3-4B, random weights: against the read limit, and 2-bit gate/up against 4 bits.

    python benchmarks/engine.py           # about ten minutes on 2 cores, 8 GB; other programs must rest
    python benchmarks/engine.py --check   # the shape of Qwen3-0.6B, and the agreement on scribe: a minute or two

W4 and W4/W2-GateUp, groups of 128, packed head. Samples of decoding are interleaved, with the read limit measured
around each; a sample is repeated while other processes use more than a fifth of a core.
"""

import argparse
import statistics
import time

import torch
from witness import RUNS, cell, claim, compare, write_result

from jettison.calibrate import token_windows
from jettison.compress import compress
from jettison.decode import load
from jettison.decode.engine import Engine
from jettison.evaluate.operators import READ_BYTES, read_limit, sample
from jettison.evaluate.random_model import packed_bytes, random_model
from jettison.kernels import native
from jettison.models import open_shape
from jettison.recipe import load_recipe

NAME = "engine"
GROUPS = ["quantize.group_size=128"]
CONTEXTS = (16, 512, 4096)
ROUNDS, STEPS, PROMPT, VERIFIED = 7, 4, 512, 5


def recipes() -> dict:
    return {name: load_recipe(name, GROUPS) for name in ("w4", "gateup-w4w2")}


def decoding(name: str, contexts=CONTEXTS, rounds: int = ROUNDS) -> dict:
    """Seconds per token by recipe and context, with shares of the read limit; prompts, and drafts to verify."""
    shape, data = open_shape(name), torch.ones(READ_BYTES // 4)
    engines, nbytes = {}, {}
    for recipe, changed in recipes().items():
        model = random_model(shape, changed)
        engines[recipe], nbytes[recipe] = Engine(model), packed_bytes(model)
    adapted = random_model(shape, recipes()["gateup-w4w2"], adapter=True)
    engines["adapter"], nbytes["adapter"] = Engine(adapted), packed_bytes(adapted)
    rows, config = [], shape.config.get_text_config()
    cache_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # a token, bfloat16
    prompt = torch.randint(0, config.vocab_size, (max(contexts),), generator=torch.Generator().manual_seed(0)).tolist()
    prefill = {}
    for context in contexts:
        sessions = {}
        for recipe, engine in engines.items():
            sessions[recipe] = engine.session(context + 64)
            start = time.perf_counter()
            for first in range(0, context, PROMPT):
                sessions[recipe].append(prompt[first : min(context, first + PROMPT)])
            if context == PROMPT:
                prefill[recipe] = context / (time.perf_counter() - start)
        kinds = {recipe: (session, 1) for recipe, session in sessions.items()}
        if context == contexts[0]:
            kinds["verify"] = (sessions["gateup-w4w2"], VERIFIED)
        samples: dict[str, list] = {kind: [] for kind in kinds}
        shares: dict[str, list] = {kind: [] for kind in kinds}
        limits = [read_limit(data)]
        for _ in range(rounds):
            for kind, (session, count) in kinds.items():

                def run(session=session, count=count, context=context) -> None:
                    for _ in range(STEPS):
                        session.append(prompt[:count], every=True)
                        session.cut(context)

                seconds, _ = sample(run)
                limits.append(read_limit(data))
                samples[kind].append(seconds / STEPS)
                read = nbytes.get(kind, 0) + cache_bytes * context
                shares[kind].append(read / samples[kind][-1] / statistics.mean(limits[-2:]))
        for kind in kinds:
            rows.append(
                {
                    "context": context,
                    "kind": kind,
                    "tokens_per_second": 1 / statistics.median(samples[kind]),
                    "share": statistics.median(shares[kind]),
                    "samples": samples[kind],
                }
            )
            print({key: value for key, value in rows[-1].items() if key != "samples"}, flush=True)
    return {"rows": rows, "bytes": nbytes, "prefill": prefill, "instruction_set": native.instruction_set()}


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


def ratio(rows: list[dict], context: int, slower: str, faster: str) -> float:
    """The median over rounds of how many times faster."""
    found = {row["kind"]: row["samples"] for row in rows if row["context"] == context}
    return statistics.median(a / b for a, b in zip(found[slower], found[faster], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    start = time.perf_counter()
    if parser.parse_args().check:
        recorded, now = cell(NAME, "agreement", agreement), agreement()
        decoding("qwen3-0.6b", contexts=(16,), rounds=1)
        compare({"mean_kl": (now["kl"], recorded["kl"], 1e-4), "top1": (now["top1"], recorded["top1"], 0.005)})
    found, agreed = cell(NAME, "qwen3-4b", lambda: decoding("qwen3-4b")), cell(NAME, "agreement", agreement)
    rows = found["rows"]
    share = {(row["context"], row["kind"]): row["share"] for row in rows}
    speed = ", ".join(f"{row['kind']} {row['tokens_per_second']:.1f}" for row in rows if row["context"] == CONTEXTS[0])
    short, adapter = CONTEXTS[0], ratio(rows, CONTEXTS[0], "adapter", "gateup-w4w2")
    write_result(
        NAME,
        [
            claim("gateup_vs_own_w4", ratio(rows, short, "w4", "gateup-w4w2"), "x", "higher", 1.15,
                  f"tokens/s at {short} tokens: {speed}"),
            claim("gateup_vs_own_w4_4k", ratio(rows, 4096, "w4", "gateup-w4w2"), "x", "higher", 1.10),
            claim("bandwidth_share", min(share[short, kind] for kind in recipes()), "", "higher", 0.85, "weight bytes"),
            claim("share_4k", min(share[4096, kind] for kind in recipes()), "", "higher", 0.80, "of weights and cache"),
            claim("adapter_cost_pct", 100 * (adapter - 1), "%", "lower", 5.0),
            claim("verify5_vs_decode1", ratio(rows, short, "verify", "gateup-w4w2"), "x", "lower", 1.35),
            claim("top1_agreement", agreed["top1"], "", "higher", 0.99, "scribe, w4, against dequantized PyTorch"),
            claim("mean_kl", agreed["kl"], "nats", "lower", 0.001, "the same"),
        ],
        time.perf_counter() - start,
        {"qwen3-4b": found, "agreement": agreed},
    )  # fmt: skip


if __name__ == "__main__":
    main()
