"""Drafts cut out of the model itself: whether outputs stay the same, how many draft tokens are taken, and the speed.

    python -m benchmarks.fixtures.deep --books train.parquet           # the model of 24 blocks, once
    python -m benchmarks.drafting.self_draft                           # half an hour on 2 cores; continues cell by cell
    python -m benchmarks.drafting.self_draft lossless chi2 acceptance  # cells that need no quiet machine
    python -m benchmarks.drafting.self_draft --check                   # recomputes a part, two minutes

Acceptance is measured with drafts of 4 tokens after the beginnings of windows of text, at temperature 0 until the text
loops, and at temperature 1; on scribe and on the fixture of 24 blocks, both packed in 4 bits. Errors come from paired
jackknives over prompts. Speed: see replay.py.
"""

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.drafting import replay
from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, write_result
from jettison.core.progress import set_quiet
from jettison.domains.text.data import Text, token_windows
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.runtime.load import Loaded, load
from jettison.runtime.native_decoder import NativeDecoder
from jettison.runtime.record import Record, Speculation
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft, View
from jettison.runtime.speculative.lookup import Lookup
from jettison.runtime.speculative.measure import write_ids
from jettison.runtime.speculative.propose import Proposer, Tally
from jettison.runtime.speculative.speculate import speculate
from jettison.runtime.speculative.speedup import before_loop
from jettison.runtime.targets import NativeTarget
from jettison.statistics.importance import choose, measure_units

NAME = "self_draft"
MODELS = {"scribe": "scribe", "deep": str(RUNS / "fixtures" / "deep")}
PACKED = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 64}}]}
TEXTS, TEMPERATURES, RATIOS = ("books-evaluation", "wikitext2"), (0.0, 1.0), (0.25, 0.375, 0.5)
PROMPTS, PROMPT, TOKENS, LENGTH = 16, 48, 64, 4  # number of prompts, tokens of each, tokens written, of a draft
# Row -> method, perturbation, seeds
METHODS = {
    "SDFP (removal)": ("fisher", "removal", (0,)),
    "SDFP (variance)": ("fisher", "variance", (0,)),
    "SDFP (elementwise)": ("fisher", "elementwise", (0,)),
    "cosine": ("cosine", "removal", (0,)),
    "magnitude": ("magnitude", "removal", (0,)),
    "uniform stride": ("stride", "removal", (0,)),
    "last": ("last", "removal", (0,)),
    "random, 3 seeds": ("random", "removal", (0, 1, 2)),
}
HALVES = "-halves"
SDFP, BASELINES = "SDFP (removal)", [name for name in METHODS if not name.startswith("SDFP")]
LOSSLESS = {
    "skipped blocks": Draft(skip=("3", "5"), adaptive=False),
    "looked up, three branches": Draft(lookup=3, length=6, branches=3, adaptive=False),
    "fewer bits": Draft(view=View(2, 64, ("gate", "up")), acceptance=0.9),
}
DRAWN = {
    "skipped blocks": Draft(skip=("1", "2"), length=2, adaptive=False),
    "looked up, three branches": Draft(lookup=2, length=2, branches=3, adaptive=False),
    "adaptive": Draft(skip=("1.mlp", "2"), lookup=2, length=3),
}


def packed(model: str) -> Loaded:
    """Return a model packed in 4 bits."""
    folder = RUNS / NAME / f"{model}-w4"
    compress(MODELS[model], PACKED, folder)
    return load(folder)


def starts(loaded: Loaded, text: str, count: int = PROMPTS, length: int = PROMPT) -> list[list[int]]:
    """Return beginnings of windows of a text: ``count`` prompts of ``length`` tokens."""
    return token_windows(loaded.source, text, 4 * PROMPT, count)[:, :length].tolist()


def lossless() -> dict[str, Any]:
    """Compare greedy texts after 200 beginnings with those of plain decoding, token for token."""
    loaded, equal, differing = packed("scribe"), 0, []
    prompts = [start for text in TEXTS for start in starts(loaded, text, 100, 24)]
    for number, start in enumerate(prompts):
        plain = write_ids(loaded, start, 40, Sampling())
        wrong = [n for n, draft in LOSSLESS.items() if write_ids(loaded, start, 40, Sampling(), draft=draft) != plain]
        equal += not wrong
        differing += [[number, name] for name in wrong]
    return {"prompts": len(prompts), "equal": equal, "differing": differing, "drafts": list(LOSSLESS)}


def chi2(times: int = 12_000) -> dict[str, Any]:
    """Test sampling with drafts on a model of 7 tokens.

    Compares joint frequencies of three sampled tokens with the exact ones.
    times: samples per draft.
    """
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=7, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.25)
    engine, prompt, sampling = NativeDecoder(model), [1, 2, 3, 1, 2], Sampling(temperature=1.0)
    joint = np.zeros((7, 7, 7))
    for first in range(7):
        for second in range(7):
            session = engine.session(16, "float32")
            logits = torch.cat(
                [session.append(prompt), session.append([first, second], every=True, activation_bits=15)]
            )
            p, q, r = (sampling.chances(row, []).double() for row in logits)
            joint[first, second] = (p / p.sum())[first] * (q / q.sum())[second] * (r / r.sum())
    values = {}
    for name, draft in DRAWN.items():
        drawn, tally = Counter(), Tally()
        for number in range(times):
            target = NativeTarget(engine, 24, "float32", skip=draft.skip)
            proposer = Proposer(draft, Lookup(draft.lookup) if draft.lookup else None, tally)
            seeded = replace(sampling, seed=number)
            drawn[tuple(speculate(target, proposer, prompt, seeded, 3, set(), Record([None])))] += 1
        observed = np.array([drawn.get(place, 0) for place in np.ndindex(7, 7, 7)], dtype=float)
        expected = joint.flatten() * times
        few = expected < 5  # too rare for the test: these outcomes are put together
        observed = np.append(observed[~few], observed[few].sum())
        expected = np.append(expected[~few], expected[few].sum())
        values[name] = float(chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)
    return {"draws": 3 * times * len(DRAWN), "p": values, "p_corrected": min(1.0, len(values) * min(values.values()))}


def acceptance(model: str, text: str, temperature: float, halves: bool = False) -> dict[str, Any]:
    """Return tokens taken and tokens judged of each prompt, by ratio and method.

    halves: units are halves of blocks.
    """
    loaded = packed(model)
    measured = measure_units(ModelFolder(MODELS[model]), Text())
    prompts, known, counts_of = starts(loaded, text), {}, {}

    def run(skip: tuple[str, ...]) -> list[list[int]]:
        if skip not in known:
            known[skip] = []
            for number, start in enumerate(prompts):
                sampling = Sampling(temperature=temperature, seed=number)
                draft = Draft(skip=skip, length=LENGTH, adaptive=False)
                written, log = write_ids(loaded, start, TOKENS, sampling, draft=draft)
                rounds = log.speculation.rounds
                record = Speculation(before_loop(rounds, written) if temperature == 0 else rounds)
                taken = sum(each.taken for each in record.rounds)
                refused = sum(each.taken < each.proposed for each in record.rounds)
                known[skip].append([taken, taken + refused])
        return known[skip]

    for ratio in RATIOS:
        for name, (method, perturbation, seeds) in METHODS.items():
            options = {"perturbation": perturbation, "halves": halves}
            runs = [run(choose(measured, ratio, method, seed=seed, **options)) for seed in seeds]
            counts_of[f"{ratio}: {name}"] = np.array(runs).sum(0).tolist()
    return {"counts": counts_of}


def rate(counts: list[list[int]]) -> float:
    """Return the acceptance rate over all prompts."""
    taken, judged = np.array(counts).sum(0)
    return taken / max(1, judged)


def rate_error(counts: list[list[int]]) -> float:
    """Return the standard error of an acceptance rate over prompts (jackknife)."""
    without_one = [rate(counts[:i] + counts[i + 1 :]) for i in range(len(counts))]
    return math.sqrt((len(counts) - 1) * np.var(without_one))


def difference(one: list[list[int]], other: list[list[int]]) -> tuple[float, float]:
    """Return the difference of two acceptance rates on the same prompts, and its standard error (jackknife)."""
    count = len(one)
    without_one = [rate(one[:i] + one[i + 1 :]) - rate(other[:i] + other[i + 1 :]) for i in range(count)]
    return rate(one) - rate(other), math.sqrt((count - 1) * np.var(without_one))


def ranks(by_setting: dict[str, dict[str, Any]]) -> tuple[int, list[str], dict[str, Any]]:
    """Return the worst rank of SDFP, the settings that have it, and a table.

    The rank is one more than the number of baselines that are better by more than two standard errors.
    """
    worst, where, rows = 1, [], []
    for key, result in by_setting.items():
        for ratio in RATIOS:
            counts = {name: result["counts"][f"{ratio}: {name}"] for name in METHODS}
            better = []
            for name in BASELINES:
                more, error = difference(counts[name], counts[SDFP])
                if more > 2 * error:
                    better.append(name)
            rank = 1 + len(better)
            where = where if rank < worst else ([] if rank > worst else where) + (
                [f"{key}, {ratio}: {', '.join(better)}"] if better else []
            )  # fmt: skip
            worst = max(worst, rank)
            rows.append([f"{key}, {ratio}", *(f"{rate(counts[name]):.2f}" for name in METHODS), str(rank)])
    return worst, where, {"columns": ["", *METHODS, "rank of SDFP"], "rows": rows}


CELLS = {
    "lossless": {"lossless": lossless},
    "chi2": {"chi2": chi2},
    "acceptance": {
        f"acceptance-{model}-{text}-{temperature:g}{kind}": lambda m=model, x=text, t=temperature, k=kind: acceptance(
            m, x, t, bool(k)
        )
        for kind in ("", HALVES)
        for model in MODELS
        for text in TEXTS
        for temperature in TEMPERATURES
    },
    "speed": replay.cells(packed),
}


def brief(result: dict[str, Any]) -> dict[str, Any]:
    """Return a cell as it stands in the result.

    Of acceptance: tokens taken and judged of all prompts, and the error of their quotient.
    """
    if "counts" not in result:
        return result
    counts = {
        name: [*np.array(pairs).sum(0).tolist(), round(rate_error(pairs), 4)]
        for name, pairs in result["counts"].items()
    }
    return result | {"counts": counts}


def summarize() -> None:
    """Write the result file from the computed cells."""
    computed = {}
    for key in (key for group in CELLS.values() for key in group):
        file = RUNS / NAME / f"{key}.json"
        if file.exists():
            computed[key] = json.loads(file.read_text())
    claims, tables = [], {}
    if equal := computed.get("lossless"):
        note = f"of {equal['prompts']}; greedy, with {', '.join(equal['drafts'])}"
        claims.append(claim("lossless_prompts_equal", equal["equal"], "prompts", "equal", equal["prompts"], note))
    if drawn := computed.get("chi2"):
        listed = ", ".join(f"{name} {p:.2g}" for name, p in drawn["p"].items())
        note = f"times three (Bonferroni), over {drawn['draws']:,} draws: {listed}"
        claims.append(claim("sampling_chi2_p", round(drawn["p_corrected"], 4), "p", "higher", 0.01, note))
    acceptances = {
        key.removeprefix("acceptance-"): result for key, result in computed.items() if key.startswith("acceptance")
    }
    notes, worsts = [], []
    for kind, unit in (("", "blocks"), (HALVES, "halves of blocks")):
        by_setting = {
            key.removesuffix(HALVES): result
            for key, result in acceptances.items()
            if key.endswith(HALVES) == bool(kind)
        }
        if not by_setting:
            continue
        worst, where, table = ranks(by_setting)
        tables[f"Of drafted tokens, the share that is taken; {unit} left out, drafts of 4"] = table
        first = sum(row[-1] == "1" for row in table["rows"])
        note = f"{unit}: first, or within two errors of first, in {first} of {len(table['rows'])} settings"
        notes.append(note + (f"; the worst rank {worst} at {'; '.join(where)}" if where else ""))
        worsts.append(worst)
    if notes:
        claims.append(claim("sdfp_rank_worst", worsts[0], "rank", "lower", 1, ". ".join(notes)))
    more, more_tables = replay.summary(computed)
    seconds = sum(result["seconds"] for result in computed.values())
    commits = sorted({result["commit"] for result in computed.values()})
    cells = {key: brief(result) for key, result in computed.items() if not key.startswith("rounds-")}
    details = {"tables": tables | more_tables, "cells": cells, "commits": commits}
    write_result(NAME, claims + more, seconds, details, script=__file__)


def check() -> None:
    """Recompute one acceptance rate and the test of sampling, with fewer samples, and compare; exits."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]["cells"]
    key = "acceptance-scribe-books-evaluation-0"
    now = acceptance("scribe", "books-evaluation", 0.0)["counts"][f"0.25: {SDFP}"]
    p = chi2(3000)["p_corrected"]
    taken, judged, _ = recorded[key]["counts"][f"0.25: {SDFP}"]
    compare({"acceptance": (rate(now), taken / judged, 0.02), "chi2, p": (min(p, 0.01), 0.01, 0.0)})


def main() -> None:
    """Compute the cells that the command line names, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", choices=[[], *CELLS], default=[], help="compute only these cells")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    set_quiet(True)
    if arguments.check:
        return check()
    start = time.perf_counter()
    for name in arguments.cells or CELLS:
        for key, work in CELLS[name].items():
            if "deep" not in key or Path(MODELS["deep"], "config.json").exists():
                cell(NAME, key, work)
    print(f"{time.perf_counter() - start:.0f} s")
    summarize()


if __name__ == "__main__":
    main()
