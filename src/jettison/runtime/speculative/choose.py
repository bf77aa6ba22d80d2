"""Choose how a checkpoint drafts for itself, without training: SDFP (arXiv:2602.05499), views and lookup.

- Acceptance is measured on texts that the model writes itself, costs on this machine.
- The candidates with the highest expected speed are then timed.
- The fastest is recorded in ``draft.json`` beside the checkpoint, if it is faster than plain decoding.
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
from jettison.graph.find import BUNDLED
from jettison.graph.folder import ModelFolder
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
PROMPTS, PROMPT, TOKENS, MOST = 6, 48, 96, 6  # prompts, tokens of each, tokens written after each, tokens of a draft
PAYS, TRIED = 1.03, 3  # speedup that a draft must reach to be recorded; how many candidates are timed


@dataclass(frozen=True)
class Candidate:
    """A draft of ``MOST`` tokens and its measurements.

    rounds: of speculative decoding with a fixed length.
    step, verify: costs of ``step_costs``.
    """

    draft: Draft
    rounds: tuple[Round, ...]
    step: float
    verify: tuple[float, ...]

    @property
    def best(self) -> tuple[int, float]:
        """The draft length with the highest expected speed, and the expected speedup over plain decoding."""
        speedup = lambda length: rounds_speedup(recut(self.rounds, length), self.step, self.verify)
        expected = {length: speedup(length) for length in range(1, len(self.verify))}
        return max(expected.items(), key=lambda pair: pair[1])

    @property
    def acceptance(self) -> float:
        """Share of judged draft tokens that the target accepted."""
        return Speculation(list(self.rounds)).acceptance

    def steady(self) -> Draft:
        """Return the draft with the best length, fixed."""
        return dataclasses.replace(self.draft, length=self.best[0], adaptive=False)

    def adaptive(self) -> Draft:
        """Return the draft with an adaptive length, and the measurements that the length is adapted by."""
        per_token = (self.verify[-1] - 1) / (len(self.verify) - 1)  # a line through the costs of 1 and of all tokens
        costs = Costs(round(self.step, 4), round(max(0.0, per_token), 4))
        return dataclasses.replace(self.draft, adaptive=True, acceptance=round(self.acceptance, 4), costs=costs)

    def row(self) -> dict[str, Any]:
        """Return the measurements as a row of ``draft.json``."""
        length, speedup = self.best
        closed = closed_speedup(self.acceptance, length, self.step, self.verify[length])
        of_model = self.draft.model and not self.draft.lookup  # the formula knows no looked-up tokens
        return {
            "draft": str(self.steady()),
            "acceptance": round(self.acceptance, 4),
            "step": round(self.step, 4),
            "verify": [round(cost, 4) for cost in self.verify],
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
    """Choose a draft for a checkpoint by measuring, and record it in ``draft.json`` beside the checkpoint.

    ratios: shares of units that the draft model leaves out, one candidate per ratio.
    method, perturbation: how units are ranked (see ``statistics.importance``).
    halves: units are halves of blocks (attention, MLP), not whole blocks.
    views: names of VIEWS; by default those with at most half of the bits of the weights.
    lookup: most tokens of a match in earlier text, 0 for no lookup.
    corpus: a text to look up in as well; it is kept beside the checkpoint.
    temperature, text, prompts, tokens, seed: what is written while measuring: ``tokens`` tokens after each of
        ``prompts`` prompts, the beginnings of windows of ``text``. Texts are measured until they begin to repeat
        themselves, or to their ends if all repeat from the start.

    Returns ``draft`` (None if none pays), the ``reason``, and the measurements: ``rows``, one per candidate, and
    ``tried``, the candidates that were timed.
    Raises UsageError for a bundled model, a ratio that leaves no block, unknown names, numbers that are not valid, no
    candidates, and a text that is too short.
    """
    ratios, views = tuple(ratios), None if views is None else list(views)
    sampling = Sampling(temperature=temperature, seed=seed)
    _check(ratios, method, perturbation, views, lookup, prompts, tokens, activation_bits)
    for name in filter(None, (text, corpus)):  # errors of reading come before any work
        read_documents(name)
    source = ModelFolder(model)
    source.require_text("drafts are for language models")
    source.require_own_modules("drafts are made of the modules of config.json")
    if source.folder in BUNDLED.values():
        raise UsageError(
            f"{model} is part of the package: compress it into another folder, where its draft can be recorded"
        )
    source.check_window(PROMPT + tokens, f"{PROMPT} tokens of prompt and {tokens} more")
    lookups = [Draft(lookup=lookup, length=MOST, corpus=corpus is not None)] if lookup else []
    for ratio in ratios:
        check_choice(unit_names(source.anatomy.blocks, halves), ratio, method, perturbation)
    loaded = load(source.folder, adapter=adapter)
    used_views = _views(loaded, views)
    measured = measure_units(UnpackedFolder(source.folder), Text(text)) if ratios else {}
    skips = [choose(measured, ratio, method, perturbation=perturbation, halves=halves) for ratio in ratios]
    if corpus is not None:
        ids = [encode(loaded.tokenizer, document) for document in read_documents(corpus)]
        flat = torch.tensor([token for document in ids for token in document])
        source.check_tokens(flat, f"text {str(corpus)!r}")
        write_corpus(source, flat)
    singles = [Draft(skip=skip, length=MOST) for skip in skips] + [Draft(view=view, length=MOST) for view in used_views]
    singles += [Draft(skip=skips[0], view=view, length=MOST) for view in used_views if skips]
    if not singles + lookups:
        raise UsageError("no draft to choose from: give ratios, views or lookup")
    beginnings = starts(loaded, text, prompts)
    candidates: list[Candidate] = []
    with bar("drafts", len(singles + lookups) + bool(singles and lookups)) as progress:

        def measure(setting: Draft) -> None:
            rounds = record_rounds(loaded, setting, beginnings, tokens, sampling, activation_bits)
            candidates.append(
                Candidate(setting, tuple(rounds), *step_costs(loaded, setting, beginnings[0], activation_bits))
            )
            progress.advance(note=str(setting))

        for setting in singles:
            measure(setting)
        if singles and lookups:  # of the draft models only the best is also measured with lookup
            best = max(candidates, key=lambda candidate: candidate.best[1]).draft
            measure(dataclasses.replace(best, lookup=lookup, corpus=corpus is not None))
        for setting in lookups:
            measure(setting)
    candidates.sort(key=lambda candidate: -candidate.best[1])
    settings = [setting for candidate in candidates[:TRIED] for setting in (candidate.steady(), candidate.adaptive())]
    speeds = compare_speed(loaded, settings, beginnings, tokens, sampling, activation_bits)
    expected = [candidate.best[1] for candidate in candidates[:TRIED] for _ in range(2)]
    tried = [
        {"draft": str(setting), "expected": round(guess, 4), "measured": round(speed, 4)}
        for setting, guess, speed in zip(settings, expected, speeds, strict=True)
    ]
    fastest = max(range(len(speeds)), key=speeds.__getitem__)
    chosen = settings[fastest] if speeds[fastest] >= PAYS else None
    reason = f"{settings[fastest]}: {speeds[fastest]:.2f} times as fast as plain decoding"
    reason += "" if chosen else f"; a draft is used from {PAYS} times on"
    result = {
        "temperature": temperature,
        "activations": "int16" if activation_bits == 15 else "int8",
        "rows": [candidate.row() for candidate in candidates],
    }
    result["tried"] = tried
    write_draft(source, chosen, reason, result)
    return {"draft": None if chosen is None else str(chosen), "reason": reason} | result


def _check(
    ratios: tuple[float, ...], method: str, perturbation: str, views: list[str] | None, lookup: int, prompts: int,
    tokens: int, activation_bits: int,
) -> None:  # fmt: skip
    """Raise UsageError for options that are not valid, before anything is loaded."""
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
    """Return the prompts of a measurement, as ids: the first tokens of ``count`` windows of a text."""
    return token_windows(loaded.source, text, 4 * PROMPT, count)[:, :PROMPT].tolist()


def export_draft(model: str | Path, chosen: Draft, out: str | Path) -> None:
    """Write the draft model as a folder of its own, for runtimes that load a draft model.

    Raises UsageError for a draft without a draft model, and for a folder that is not empty.
    """
    folder = check_folder(out)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: choose another folder for the draft model")
    source = UnpackedFolder(model)
    if not chosen.model:
        raise UsageError(f"the draft of {source.name} ({chosen}) has no draft model that could be exported")
    view = {
        linear.name: rounded(source.read_weight(linear.name, linear.layout), view_grid(linear, chosen.view))
        for linear in source.anatomy
        if chosen.view and linear.block is not None and set(linear.roles) & set(chosen.view.roles)
        if str(linear.block) not in chosen.skip
    }
    write_draft_model(source, chosen.skip, folder, view)


def _views(loaded: Loaded, names: list[str] | None) -> list[View]:
    """Return the views of these names; by default those with at most half of the median bits, if views can run."""
    if names is None:
        packed = [module.grid.bits for module in loaded.model.modules() if isinstance(module, QuantizedLinear)]
        bits = statistics.median(packed) if packed else 16
        return [view for view in VIEWS.values() if loaded.decoder and 2 * view.bits <= bits]
    return [VIEWS[name] for name in names]
