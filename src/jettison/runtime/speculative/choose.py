"""Choose how a checkpoint drafts for itself: SDFP (arXiv:2602.05499) and what else needs no training, by measuring.

The texts are what the model writes itself; costs are of this machine. What is expected to be fastest is then written
with, and recorded only if it was: ``draft.json`` beside the checkpoint.
"""

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import UsageError, unknown
from jettison.core.files import check_folder
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.domains.text.data import Text, encode, read_documents, token_windows
from jettison.formats.draft_model import write_draft_model
from jettison.formats.packed import UnpackedFolder
from jettison.graph.folder import BUNDLED, ModelFolder
from jettison.graph.halves import unit_names
from jettison.graph.modules import QuantizedLinear
from jettison.kernels.specs import check_activation_bits
from jettison.runtime.load import LOOKUP, Loaded, load
from jettison.runtime.record import Round, Speculation
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import LONGEST_MATCH, ROLES, Costs, Draft, View, write_corpus, write_draft
from jettison.runtime.speculative.measure import compare_speed, record_rounds, step_costs
from jettison.runtime.speculative.speedup import closed_speedup, recut, rounds_speedup
from jettison.runtime.views import rounded, view_grid
from jettison.statistics.importance import check_choice, check_ranking, choose, measure_units

RATIOS = (0.25, 0.375, 0.5)
BLOCKS = tuple(role for role in ROLES if role != "head")
VIEWS = {"gateup2": View(2, 64, ("gate", "up")), "all2": View(2, 64, BLOCKS), "all4": View(4, 64, ROLES)}
PROMPTS, PROMPT, TOKENS, MOST = 6, 48, 96, 6  # texts, their tokens, what is written, tokens of a draft while measuring
PAYS, TRIED = 1.03, 3  # how many times as fast a draft must have been; how many are written with


@dataclass(frozen=True)
class Candidate:
    """A draft of ``MOST`` tokens and what was found of it. step, verify: costs, see ``step_costs``."""

    draft: Draft
    rounds: tuple[Round, ...]
    step: float
    verify: tuple[float, ...]

    @property
    def best(self) -> tuple[int, float]:
        """The length that is expected to be fastest, and how many times as fast as plain decoding."""
        speedup = lambda length: rounds_speedup(recut(self.rounds, length), self.step, self.verify)
        expected = {length: speedup(length) for length in range(1, len(self.verify))}
        return max(expected.items(), key=lambda pair: pair[1])

    @property
    def acceptance(self) -> float:
        return Speculation(list(self.rounds)).acceptance

    def steady(self) -> Draft:
        return dataclasses.replace(self.draft, length=self.best[0], adaptive=False)

    def adaptive(self) -> Draft:
        more = (self.verify[-1] - 1) / (len(self.verify) - 1)
        costs = Costs(round(self.step, 4), round(max(0.0, more), 4))
        return dataclasses.replace(self.draft, adaptive=True, acceptance=round(self.acceptance, 4), costs=costs)

    def row(self) -> dict[str, Any]:
        length, speedup = self.best
        closed = closed_speedup(self.acceptance, length, self.step, self.verify[length])
        of_model = self.draft.model and not self.draft.lookup
        return {
            "draft": str(self.steady()),
            "acceptance": round(self.acceptance, 4),
            "step": round(self.step, 4),
            "verify": [round(each, 4) for each in self.verify],
            "length": length,
            "expected": round(speedup, 4),
            "closed_formula": round(closed, 4) if of_model else None,
        }


def draft(
    model: str | Path,
    *,
    ratios: Iterable[float] = RATIOS,
    method: str = "fisher",
    perturbation: str = "removal",
    halves: bool = False,
    views: Iterable[str] | None = None,
    lookup: int = LOOKUP,
    corpus: str | Path | None = None,
    temperature: float = 0.0,
    text: str | Path = "books",
    prompts: int = PROMPTS,
    tokens: int = TOKENS,
    adapter: bool = True,
    activation_bits: int = 15,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose a draft for a checkpoint and record it beside it. Returns ``draft``, None where none pays, the ``reason``,
    and what was measured: ``rows``, a candidate each, and ``tried``, those that were written with.

    ratios: shares of units to leave out, ranked by method and perturbation (see ``calibrate.importance``); halves:
    units are halves of blocks. views: names of VIEWS, by default those of at most half of the weights' bits. lookup:
    tokens of a match at most, 0 for none. corpus: a text to look up in as well, kept beside the checkpoint.
    temperature, text, prompts, tokens, seed: what is written while measuring. Texts that loop are left out, unless all
    do.

    Raises UsageError for a bundled model, a ratio that leaves no block, unknown names, numbers that are not valid,
    nothing to choose from, and texts too short.
    """
    ratios, views = tuple(ratios), None if views is None else list(views)
    sampling = Sampling(temperature=temperature, seed=seed)
    _check(ratios, method, perturbation, views, lookup, prompts, tokens, activation_bits)
    for each in filter(None, (text, corpus)):
        read_documents(each)
    source = ModelFolder(model)
    if source.folder in BUNDLED.values():
        raise UsageError(
            f"{model} is a part of the package: compress it into a folder, whose draft can be recorded there"
        )
    source.check_window(PROMPT + tokens, f"{PROMPT} tokens of prompt and {tokens} more")
    looked = [Draft(lookup=lookup, length=MOST, corpus=corpus is not None)] if lookup else []
    for ratio in ratios:
        check_choice(unit_names(source.anatomy.blocks, halves), ratio, method, perturbation)
    loaded = load(source.folder, adapter=adapter)
    named = _views(loaded, views)
    measured = measure_units(UnpackedFolder(source.folder), Text(text)) if ratios else {}
    skips = [choose(measured, ratio, method, perturbation=perturbation, halves=halves) for ratio in ratios]
    if corpus is not None:
        ids = [encode(loaded.tokenizer, document) for document in read_documents(corpus)]
        flat = torch.tensor([token for document in ids for token in document])
        source.check_tokens(flat, f"text {str(corpus)!r}")
        write_corpus(source, flat)
    singles = [Draft(skip=skip, length=MOST) for skip in skips] + [Draft(view=view, length=MOST) for view in named]
    singles += [Draft(skip=skips[0], view=view, length=MOST) for view in named if skips]
    if not singles + looked:
        raise UsageError("no draft to choose from: give ratios, views or lookup")
    beginnings = starts(loaded, text, prompts)
    found: list[Candidate] = []
    with bar("drafts", len(singles + looked) + bool(singles and looked)) as progress:

        def measure(each: Draft) -> None:
            rounds = record_rounds(loaded, each, beginnings, tokens, sampling, activation_bits)
            found.append(Candidate(each, tuple(rounds), *step_costs(loaded, each, beginnings[0], activation_bits)))
            progress.advance(note=str(each))

        for each in singles:
            measure(each)
        if singles and looked:
            best = max(found, key=lambda candidate: candidate.best[1]).draft
            measure(dataclasses.replace(best, lookup=lookup, corpus=corpus is not None))
        for each in looked:
            measure(each)
    found.sort(key=lambda candidate: -candidate.best[1])
    settings = [each for candidate in found[:TRIED] for each in (candidate.steady(), candidate.adaptive())]
    speeds = compare_speed(loaded, settings, beginnings, tokens, sampling, activation_bits)
    expected = [candidate.best[1] for candidate in found[:TRIED] for _ in range(2)]
    tried = [
        {"draft": str(each), "expected": round(guess, 4), "measured": round(speed, 4)}
        for each, guess, speed in zip(settings, expected, speeds, strict=True)
    ]
    at = max(range(len(speeds)), key=speeds.__getitem__)
    chosen = settings[at] if speeds[at] >= PAYS else None
    reason = f"{settings[at]}: {speeds[at]:.2f} times as fast as plain decoding"
    reason += "" if chosen else f", which is less than the {PAYS} that a draft is worth"
    result = {
        "temperature": temperature,
        "activations": "int16" if activation_bits == 15 else "int8",
        "rows": [each.row() for each in found],
    }
    result["tried"] = tried
    write_draft(source, chosen, reason, result)
    return {"draft": None if chosen is None else str(chosen), "reason": reason} | result


def _check(
    ratios: tuple[float, ...], method: str, perturbation: str, views: list[str] | None, lookup: int, prompts: int,
    tokens: int, activation_bits: int,
) -> None:  # fmt: skip
    """Raises UsageError, before anything is loaded, for what is not valid."""
    for ratio in ratios:
        check_number("ratio", ratio, 0.001, 0.999)
    check_ranking(method, perturbation)
    for name in views or ():
        if name not in VIEWS:
            raise unknown("view", name, VIEWS)
    check_number("lookup", lookup, 0, LONGEST_MATCH, whole=True)
    check_number("prompts", prompts, 1, 1000, whole=True)
    check_number("tokens", tokens, 8, 100_000, whole=True)
    check_activation_bits(activation_bits)
    if not ratios and not lookup and views == []:
        raise UsageError("no draft to choose from: give ratios, views or lookup")


def starts(loaded: Loaded, text: str | Path, count: int = PROMPTS) -> list[list[int]]:
    """The first tokens of windows of a text: the prompts of the measurement."""
    return token_windows(loaded.source, text, 4 * PROMPT, count)[:, :PROMPT].tolist()


def export_draft(model: str | Path, chosen: Draft, out: str | Path) -> None:
    """The draft model as a folder of its own, for runtimes that take one. Raises UsageError for a draft without one,
    and for a folder that is not empty."""
    folder = check_folder(out)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: choose another folder for the draft model")
    source = UnpackedFolder(model)
    if not chosen.model:
        raise UsageError(f"the draft of {source.name} ({chosen}) has no model that could be exported")
    view = {
        linear.name: rounded(source.read_weight(linear.name, linear.layout), view_grid(linear, chosen.view))
        for linear in source.anatomy
        if chosen.view and linear.block is not None and set(linear.roles) & set(chosen.view.roles)
        if str(linear.block) not in chosen.skip
    }
    write_draft_model(source, chosen.skip, folder, view)


def _views(loaded: Loaded, names: list[str] | None) -> list[View]:
    if names is None:
        packed = [module.grid.bits for module in loaded.model.modules() if isinstance(module, QuantizedLinear)]
        bits = statistics.median(packed) if packed else 16
        return [view for view in VIEWS.values() if loaded.decoder and 2 * view.bits <= bits]
    return [VIEWS[name] for name in names]
