"""Part of self_draft.py: how much drafts speed up decoding in the shape of Qwen3-1.7B, by replaying recorded rounds.

Random weights write nothing that can be drafted, so rounds are **recorded** on trained models (scribe, and the fixture
of 24 blocks). For repetitive text they are recorded on fixed outputs: a passage of the prompt with some tokens changed
(an edit), and every third sentence of a passage (a summary). Each round is then run in the large shape: as many steps
of the draft model, as many tokens verified, as many kept. Plain decoding of as many tokens takes turns with it; samples
are repeated while other processes are at work. Activations have 8 bits on both sides.
"""

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.witness import RUNS, claim
from jettison.bench.random_model import random_model
from jettison.core.timing import calmest, sample
from jettison.domains.text.data import Text, read_documents, token_windows
from jettison.graph.folder import open_shape
from jettison.graph.halves import unit_names
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import Loaded
from jettison.runtime.native_decoder import NativeDecoder
from jettison.runtime.record import Record, Round, Speculation
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.choose import VIEWS
from jettison.runtime.speculative.draft import Costs, Draft
from jettison.runtime.speculative.lookup import Corpus, Lookup
from jettison.runtime.speculative.measure import compare_speed
from jettison.runtime.speculative.propose import Proposer, Tally
from jettison.runtime.speculative.speculate import speculate
from jettison.runtime.speculative.speedup import before_loop, closed_speedup, needed_acceptance, rounds_speedup
from jettison.runtime.targets import NativeTarget
from jettison.statistics.importance import choose, measure_units

NAME, SHAPE, GROUP = "self_draft", "qwen3-1.7b", 128
CONTEXT, MOST, ROUNDS, REPEATS = 64, 8, 60, 2  # tokens before, of a draft at most; rounds replayed, how often
PROMPTS, PROMPT, TOKENS = 12, 48, 64  # number of prompts, tokens of each, tokens written
RATIOS = {"a quarter skipped": 0.25, "three eighths skipped": 0.375, "half skipped": 0.5}
SMALL = {"gate and up in 2 bits": "gateup2", "all in 2 bits": "all2"}
FORMULA = ("a quarter skipped", "half skipped", "all in 2 bits")  # recorded with drafts of fixed length, too
FIXED, PAPER = ", 4 at a time", (1.32, 1.5)
BOTH = "a quarter skipped, gate and up in 2 bits"
PASSAGE, CHANGED = 320, 14  # tokens of a passage; in an edit, one of so many is changed


class Large:
    """The large shape in the native decoder, with its views in fewer bits."""

    def __init__(self):
        shape = open_shape(SHAPE)
        packed = lambda bits: load_recipe(
            {"steps": [{"quantize": {"method": "rtn", "bits": bits, "group_size": GROUP}}]}
        )
        model, small = random_model(shape, packed(4)), random_model(shape, packed(2), seed=1)
        stand_ins = lambda view: {
            linear.name: small.get_submodule(linear.name)
            for linear in shape.anatomy
            if set(linear.roles) & set(view.roles)
        }
        self.engine, self.blocks = NativeDecoder(model), shape.anatomy.blocks
        self.views = {name: NativeDecoder(model, stand_ins(VIEWS[view])) for name, view in SMALL.items()}
        self.ids = np.random.default_rng(0).integers(0, self.engine.vocabulary, CONTEXT + MOST + 2).tolist()

    def target(self, name: str) -> NativeTarget:
        """Return a target with the draft model ``name``. Which blocks are skipped makes no difference to speed."""
        ratio = RATIOS["a quarter skipped"] if name == BOTH else RATIOS.get(name, 0.0)
        skip = unit_names(self.blocks)[1 : 1 + round(ratio * self.blocks)]
        view = self.views["gate and up in 2 bits" if name == BOTH else name] if name in (*SMALL, BOTH) else None
        target = NativeTarget(self.engine, CONTEXT + 4096, activation_bits=8, skip=skip, drafter=view)
        target.read(self.ids[:CONTEXT])
        return target


def costs(large: Large) -> dict[str, Any]:
    """Measure steps of draft models, and reading 1 to 9 tokens at once, in units of plain decoding steps."""
    target = large.target("")
    runs: dict[str, Callable[[], None]] = {}
    for count in range(1, MOST + 2):
        runs[f"read {count}"] = lambda count=count: _verify(target, large.ids, count, 0)
    for name in (*RATIOS, *SMALL, BOTH):
        runs[name] = lambda drafter=large.target(name): (drafter.draft(large.ids[0]), drafter.undraft())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(7):
        for name, run in runs.items():
            seconds[name].append(sample(run)[0])
    ratio = lambda name: statistics.median(a / b for a, b in zip(seconds[name], seconds["read 1"], strict=True))
    cost_of = {name: ratio(name) for name in runs}
    return {
        "verify": [cost_of[f"read {count}"] for count in range(1, MOST + 2)],
        "draft": {name: cost_of[name] for name in (*RATIOS, *SMALL, BOTH)},
        "tokens_per_second": 1 / statistics.median(seconds["read 1"]),
    }


def _verify(target: NativeTarget, ids: list[int], count: int, keep: int) -> None:
    target.verify(ids[:count], list(range(-1, count - 1)))
    target.keep(list(range(keep)))


def drafts(model: str, known: dict[str, Any]) -> dict[str, Draft]:
    """Return the drafts that are recorded on a trained model.

    known: result of ``costs``. The costs that decide how long drafts are, are those of the large shape.
    """
    measured = measure_units({"scribe": "scribe", "deep": str(RUNS / "fixtures" / "deep")}[model], Text())
    cost_of_token = (known["verify"][4] - 1) / 4
    cost = lambda name: Costs(known["draft"].get(name, 0.5), cost_of_token)
    by_name = {
        name: Draft(skip=choose(measured, ratio), length=MOST, costs=cost(name)) for name, ratio in RATIOS.items()
    } | {name: Draft(view=VIEWS[view], length=MOST, costs=cost(name)) for name, view in SMALL.items()}
    quarter = by_name["a quarter skipped"]
    by_name[BOTH] = replace(quarter, view=VIEWS["gateup2"], costs=cost(BOTH))
    by_name["lookup"] = Draft(lookup=4, length=MOST, costs=cost("lookup"))
    by_name["lookup and corpus"] = replace(by_name["lookup"], corpus=True)
    for name in ("a quarter skipped", "half skipped", "all in 2 bits"):
        by_name[f"{name}, lookup and corpus"] = replace(by_name[name], lookup=4, corpus=True)
    return by_name


def record(loaded: Loaded, model: str, known: dict[str, Any]) -> dict[str, Any]:
    """Record rounds on prose: what a model writes greedily after beginnings of windows of books, until it loops.

    Draft models alone are also recorded with drafts of fixed length, for the formula.
    """
    corpus = Corpus(_ids(loaded, "books"), 4)
    prompts = token_windows(loaded.source, "books-evaluation", 4 * PROMPT, PROMPTS)[:, :PROMPT].tolist()
    rounds_of = {}
    for name, draft in drafts(model, known).items():
        kinds = {"": draft}
        if name in FORMULA:
            kinds[FIXED] = replace(draft, length=4, adaptive=False)
        for kind, variant in kinds.items():
            tally, rounds = Tally(), []
            for prompt in prompts:
                target, log = loaded.target(variant, PROMPT + TOKENS, activation_bits=8), Record([None])
                lookup = Lookup(variant.lookup, corpus if variant.corpus else None) if variant.lookup else None
                proposer = Proposer(variant, lookup, tally)
                ids = speculate(target, proposer, prompt, Sampling(), TOKENS, set(), log)
                rounds += before_loop(log.speculation.rounds, list(ids))
            rounds_of[name + kind] = [list(asdict(each).values()) for each in rounds]
    return {"rounds": rounds_of}


def repetitive(loaded: Loaded, known: dict[str, Any]) -> dict[str, Any]:
    """Record rounds on fixed outputs: edits and summaries of passages that are in the prompt."""
    ids, rng = _ids(loaded, "books-evaluation"), np.random.default_rng(0)
    tokenizer = loaded.tokenizer
    cost_of_token = (known["verify"][4] - 1) / 4
    rounds_of: dict[str, list] = {"edits": [], "summaries": []}
    for number in range(PROMPTS):
        passage = ids[(number * 7919) % (len(ids) - PASSAGE) :][:PASSAGE].tolist()
        edit = [int(rng.choice(ids)) if rng.random() < 1 / CHANGED else token for token in passage]
        sentences = re.split(r"(?<=[.!?]) ", tokenizer.decode(passage))
        summary = tokenizer(" ".join(sentences[::3])).input_ids
        for kind, output in (("edits", edit), ("summaries", summary)):
            draft = Draft(lookup=4, length=MOST, costs=Costs(0.5, cost_of_token))
            rounds = _forced(Proposer(draft), passage, output, loaded.decoder.vocabulary)
            rounds_of[kind] += [list(asdict(each).values()) for each in rounds]
    return {"rounds": rounds_of}


class _Given:
    """A target that writes a fixed text."""

    branching, room = False, 1 << 20


def _forced(proposer: Proposer, prompt: list[int], output: list[int], vocabulary: int) -> list[Round]:
    """Propose drafts for a fixed output, and return the rounds: tokens are taken until one differs from the output."""
    proposer.learn(prompt)
    text, rounds = [*prompt, output[0]], []
    proposer.learn(output[:1])
    while (written := len(text) - len(prompt)) < len(output):
        proposal = proposer.propose(_Given(), text, len(output) - written - 1, Sampling(), None)
        taken = 0
        for token, expected in zip(proposal.tokens, output[written:], strict=False):
            if token != expected:
                break
            taken += 1
        proposer.judged(proposal, range(taken + 1))
        accepted = output[written : written + taken + 1]
        proposer.learn(accepted)
        text += accepted
        rounds.append(Round(proposal.kind, proposal.steps, len(proposal.tokens), taken))
    return rounds


def _ids(loaded: Loaded, text: str) -> np.ndarray:
    return np.concatenate([loaded.tokenizer(each, verbose=False).input_ids for each in read_documents(text)])


def replayed(large: Large, recorded: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run each recorded trace in the large shape. Returns its speed over plain decoding, measured and by formula."""
    rows = []
    for where, trace in recorded.items():
        for name, rounds in trace["rounds"].items():
            if name.endswith(FIXED) and name.removesuffix(FIXED) not in FORMULA:
                continue
            count = min(ROUNDS, len(rounds))  # spread over all texts, because some are easier to draft
            part = [Round(*rounds[place * len(rounds) // count]) for place in range(count)]
            rows.append({"text": where, "draft": name} | _run(large, name, part))
            print(f"  {where}, {name}: {rows[-1]['measured']:.2f}, expected {rows[-1]['expected']:.2f}", flush=True)
    return {"rows": rows}


def _model_of(name: str) -> str:
    """Return the draft model that a draft's name begins with; empty without one."""
    return next((base for base in (BOTH, *RATIOS, *SMALL) if name.startswith(base)), "")


def _run(large: Large, name: str, rounds: list[Round]) -> dict[str, Any]:
    target, base = large.target(_model_of(name)), _model_of(name)
    tokens = sum(1 + round_.taken for round_ in rounds)  # a round writes one token more than it takes

    def drafted() -> None:
        for round_ in rounds:
            for _ in range(round_.steps):
                target.draft(large.ids[0])
            target.undraft()
            _verify(target, large.ids, 1 + round_.proposed, 1 + round_.taken)

    def plain() -> None:
        for _ in range(tokens):
            _verify(target, large.ids, 1, 1)

    def timed(run: Callable[[], None]) -> float:
        target.cut(CONTEXT)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    parts = {count: lambda count=count: _verify(target, large.ids, count, 0) for count in range(1, MOST + 2)}
    parts |= {0: lambda: (target.draft(large.ids[0]), target.undraft())} if base else {}
    ratios, units = [], {count: [] for count in parts}
    for _ in range(REPEATS):
        ratios.append(calmest(lambda: timed(plain))[0] / calmest(lambda: timed(drafted))[0])
        for count, part in parts.items():  # costs of steps now, because they drift
            units[count].append(sample(part)[0])
    cost = {c: statistics.median(a / b for a, b in zip(each, units[1], strict=True)) for c, each in units.items()}
    step, verify = cost.get(0, 0.0), [cost[count] for count in range(1, MOST + 2)]
    record = Speculation(rounds)
    result = {
        "measured": statistics.median(ratios),
        "samples": ratios,
        "expected": rounds_speedup(rounds, step, verify),
        "acceptance": record.acceptance,
        "tokens_per_step": record.tokens_per_step,
    }
    if name.endswith(FIXED):
        result["formula"] = closed_speedup(record.acceptance, 4, step, verify[4])
    return result


def real(loaded: Loaded, model: str, known: dict[str, Any]) -> dict[str, Any]:
    """Measure how fast a trained model itself writes with drafts. Python takes part of its steps, which are short."""
    prompts = token_windows(loaded.source, "books-evaluation", 4 * PROMPT, PROMPTS)[:, :PROMPT].tolist()
    without_corpus = {name: draft for name, draft in drafts(model, known).items() if not draft.corpus}
    speeds = compare_speed(loaded, list(without_corpus.values()), prompts, TOKENS, Sampling())
    return {"speeds": dict(zip(without_corpus, speeds, strict=True))}


def cells(packed: Callable[[str], Loaded]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the cells in order: costs, traces that use them, the replay of traces."""
    large: list[Large] = []
    shared = lambda: large[0] if large else large.append(Large()) or large[0]
    known = lambda: json.loads((RUNS / NAME / "costs.json").read_text())
    recorded = {
        "prose, scribe": ("rounds-scribe", lambda: record(packed("scribe"), "scribe", known())),
        "prose, 24 blocks": ("rounds-deep", lambda: record(packed("deep"), "deep", known())),
        "repetitive": ("rounds-repetitive", lambda: repetitive(packed("scribe"), known())),
    }

    def replay() -> dict[str, Any]:
        files = {where: RUNS / NAME / f"{key}.json" for where, (key, _) in recorded.items()}
        traces = {where: json.loads(file.read_text()) for where, file in files.items() if file.exists()}
        return replayed(shared(), traces)

    return (
        {"costs": lambda: costs(shared())}
        | dict(recorded.values())
        | {"replayed": replay}
        | {f"real-{model}": lambda model=model: real(packed(model), model, known()) for model in ("scribe", "deep")}
    )


def summary(have: dict[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return claims and tables; empty until traces have been replayed. have: the computed cells."""
    if "replayed" not in have:
        return [], {}
    rows, known = have["replayed"]["rows"], have["costs"]
    prose = [row for row in rows if row["text"].startswith("prose")]
    line = lambda row: f"{row['draft']} on {row['text']} {row['measured']:.2f}"
    best = max(prose, key=lambda row: row["measured"])
    alone = [
        max((row for row in prose if row["draft"] == name), key=lambda row: row["measured"])
        for name in (*RATIOS, *SMALL, BOTH, "lookup", "lookup and corpus")
    ]
    ratios = {row["draft"]: row["measured"] for row in rows if row["text"] == "repetitive"}
    off = lambda row: 100 * abs(row.get("formula", row["expected"]) / row["measured"] - 1)
    worst = max(rows, key=off)
    needs = []
    for name, step in known["draft"].items():
        cells = [name, f"{step:.2f}"]
        for speedup in PAPER:
            lengths = range(1, MOST + 1)
            needed = [needed_acceptance(speedup, length, step, known["verify"][length]) for length in lengths]
            needed = [each for each in needed if each is not None]
            cells.append(f"{min(needed):.2f}" if needed else "none is enough")
        needs.append(cells)
    entries = [
        claim("speedup_prose_replayed", round(best["measured"], 3), "x", "higher", 1.10,
              f"rounds recorded on trained models, replayed in the shape of {SHAPE}: {line(best)}; each ingredient "
              f"alone at best: {', '.join(map(line, alone))}"),
        claim("speedup_repetitive_replayed", round(min(ratios.values()), 3), "x", "higher", 1.3,
              "looked up in the prompt, given outputs: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())),
        claim("predicted_vs_measured_worst_pct", round(off(worst), 1), "%", "lower", 10.0,
              f"{line(worst)}, predicted {worst.get('formula', worst['expected']):.2f}; the closed formula for drafts "
              f"of fixed length, the same for each recorded round otherwise; {len(rows)} traces"),
    ]  # fmt: skip
    shown = [
        [row["text"], row["draft"], f"{row['acceptance']:.2f}", f"{row['tokens_per_step']:.2f}",
         f"{row.get('formula', row['expected']):.2f}", f"{row['measured']:.2f}"]
        for row in sorted(rows, key=lambda row: (row["text"], -row["measured"]))
    ]  # fmt: skip
    head = ["text", "draft", "taken", "tokens per step", "predicted", "times as fast"]
    tables = {
        f"Replayed in the shape of {SHAPE}, {GROUP}-groups of 4 bits": {"columns": head, "rows": shown},
        "Acceptance that the paper's speeds would need here, at the best length": {
            "columns": ["draft model", "cost of a step", *(f"for {speedup}x" for speedup in PAPER)],
            "rows": needs,
        },
    }
    for model in ("scribe", "deep"):
        if f"real-{model}" in have:
            speeds = have[f"real-{model}"]["speeds"]
            tables[f"{model} itself, written with drafts that adapt"] = {
                "columns": ["draft", "times as fast"],
                "rows": [[name, f"{speed:.2f}"] for name, speed in speeds.items()],
            }
    return entries, tables
