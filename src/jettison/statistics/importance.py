"""How much each block, or half of one, matters to the output: what drafts and depth pruning drop first.

Everything is found block by block, so that a model larger than memory can be ranked: once forward for the states, once
backward for the gradients, one block in memory at a time. Kept in a journal; a killed run continues at its block.
"""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.caches import cache_folder
from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.core.files import digest
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.progress import bar
from jettison.core.sealed import read_sealed, write_sealed
from jettison.graph.activations import Activations
from jettison.graph.folder import ModelFolder
from jettison.graph.halves import HALVES, half_of, unit_names, without
from jettison.graph.source_check import check_source
from jettison.graph.walk import Walk
from jettison.statistics.data import Data

SAMPLES, LENGTH = 32, 256
METHODS = ("fisher", "cosine", "magnitude", "random", "stride", "last")
PERTURBATIONS = ("removal", "variance", "elementwise")
Measured = Mapping[str, Mapping[str, float]]  # unit -> what was found of it


def measure_units(
    model: str | Path | ModelFolder,
    data: Data,
    *,
    samples: int = SAMPLES,
    length: int | None = None,
    spill: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Of every half of every block: ``trace``, the trace of the empirical Fisher information (Σ g² over its weights, g
    the gradient of a window's mean cross-entropy; mean over windows); ``taylor``, Σ g² θ²; ``squares``, ``sum`` and
    ``count`` of its weights; and of halves and blocks ``influence``, 1 − cos between the block's output with it and
    without.

    samples, length: windows of the calibration data, by default of 256 tokens or as many as the model has positions
    for, each with a gradient of its own. spill: a folder for the states, in place of memory. Raises UsageError for
    windows of fewer than 2 tokens, or more than there are positions.
    """
    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    length = source.window(LENGTH) if length is None else length
    if length < 2:
        raise UsageError(f"length = {length}: every token but the first is predicted, so at least 2 are needed")
    source.check_window(length, "length")
    run = {"model": source.fingerprint(), "text": data.digest, "samples": samples, "length": length}
    folder = cache_folder() / "importance" / digest(*map(str, run.values()))
    with locked(folder, wait=True):
        journal = Journal(folder / "units.jsonl", run, cache=True)
        if any(journal.last(block=block) is None for block in range(source.anatomy.blocks)):
            if not source.quantization:
                check_source(source)
            _measure(source, data.windows(source, length, samples), journal, folder, spill)
    units = [journal.last(block=block)["units"] for block in reversed(range(source.anatomy.blocks))]
    return {unit: found for of_block in units for unit, found in sorted(of_block.items())}


def check_ranking(method: str, perturbation: str) -> None:
    """Raises UsageError that lists what there is."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if perturbation not in PERTURBATIONS:
        raise unknown("perturbation", perturbation, PERTURBATIONS)


def rank(
    measured: Measured, method: str = "fisher", *, perturbation: str = "removal", halves: bool = False, seed: int = 0
) -> dict[str, float]:
    """Unit -> score; the lowest matter least.

    ``fisher``: the trace of the Fisher information times the expected squared perturbation of the weights (SDFP,
    arXiv:2602.05499, by FIT, arXiv:2210.08502). The source leaves the perturbation open; all readings are here:
    ``removal``, the mean of θ²; ``variance``, the variance of θ; ``elementwise``, Σ g² θ², weight by weight.
    Baselines: ``cosine``, block influence (ShortGPT, arXiv:2403.03853); ``magnitude``, Σ θ²; ``random``; ``last``: the
    later, the less; ``stride`` has no scores, see ``choose``.

    Raises UsageError for an unknown method or perturbation.
    """
    check_ranking(method, perturbation)
    units = unit_names(sum("." not in unit for unit in measured), halves)
    if method == "random":
        order = random.Random(seed).sample(units, len(units))
        return {unit: float(order.index(unit)) for unit in units}
    if method in ("last", "stride"):
        return {unit: -float(number) for number, unit in enumerate(units)}
    return {unit: _score(measured, unit, method, perturbation) for unit in units}


def choose(
    measured: Measured,
    ratio: float,
    method: str = "fisher",
    *,
    perturbation: str = "removal",
    halves: bool = False,
    seed: int = 0,
) -> tuple[str, ...]:
    """The units to drop, in the model's order: the lowest scores, ``ratio`` of all units. The first block and the last
    stay. ``stride`` takes every so many.

    Raises UsageError for a ratio that drops nothing, or more than may go.
    """
    scores = rank(measured, method, perturbation=perturbation, halves=halves, seed=seed)
    units = list(scores)
    count, free = check_choice(units, ratio, method, perturbation)
    if method == "stride":
        return tuple(free[(2 * number + 1) * len(free) // (2 * count)] for number in range(count))
    chosen = set(sorted(free, key=scores.__getitem__)[:count])
    return tuple(unit for unit in units if unit in chosen)


def check_choice(units: Sequence[str], ratio: float, method: str, perturbation: str) -> tuple[int, list[str]]:
    """How many units ``choose`` drops, and among which: before anything is measured. Raises UsageError as it does."""
    check_ranking(method, perturbation)
    ends = {units[0].partition(".")[0], units[-1].partition(".")[0]}
    free = [unit for unit in units if unit.partition(".")[0] not in ends]
    count = round(ratio * len(units)) if 0 < ratio < 1 else 0
    if not 1 <= count <= len(free):
        most = len(free) / len(units)
        raise UsageError(
            f"ratio = {ratio:g} of {len(units)} units: it must drop at least one, and the first block and the last "
            f"stay, so it is {1 / len(units):.3g} to {most:.3g} here"
        )
    return count, free


def _score(measured: Measured, unit: str, method: str, perturbation: str) -> float:
    if method == "cosine":
        return measured[unit]["influence"]
    parts = [measured[unit]] if "." in unit else [measured[f"{unit}.{half}"] for half in HALVES]
    total = lambda name: sum(part[name] for part in parts)
    if method == "magnitude":
        return total("squares")
    if perturbation == "elementwise":
        return total("taylor")
    mean = total("sum") / total("count")
    moved = total("squares") / total("count") - (mean**2 if perturbation == "variance" else 0.0)
    return total("trace") * moved


def _measure(source: ModelFolder, windows: torch.Tensor, journal: Journal, folder: Path, spill: Path | None) -> None:
    """Backward from the last block, or from where a killed run stopped and left the gradients of that place."""
    blocks = source.anatomy.blocks
    lowest = next((block for block in reversed(range(blocks)) if journal.last(block=block) is None), -1) + 1
    kept = lambda block: folder / f".gradient-{block}.safetensors"  # by what enters the block, for each window
    if lowest < blocks and (stored := read_sealed(kept(lowest))) is None:
        lowest = blocks
    walk = Walk(source, windows, spill=spill, batch=1)
    entering: list[Activations] = []  # of each block
    with bar("importance", 2 * blocks, 2 * (blocks - lowest)) as progress:
        for block in range(lowest):
            states = walk.new_stream(f"block-{block}")
            for part in walk.hidden:
                states.append(part)
            entering.append(states)
            with walk.block(block):
                for number in range(len(walk.batches)):
                    walk.advance(block, number)
            progress.advance(note=f"forward {block}")
        known = lowest < blocks
        gradients = [stored[0][str(number)] for number in range(len(windows))] if known else _at_the_end(walk)
        for block in reversed(range(lowest)):
            with walk.block(block) as module:
                units = _backward(walk, source, block, module, entering.pop(), gradients)
            for unit, found in units.items():
                for what, value in found.items():
                    if not math.isfinite(value):
                        raise JettisonError(f"{source.name}: {what} of unit {unit} is {value}: its outputs overflow")
            write_sealed(kept(block), {str(number): each for number, each in enumerate(gradients)})
            journal.add(block=block, units=units)
            kept(block + 1).unlink(missing_ok=True)
            progress.advance(note=f"backward {block}")
    kept(0).unlink(missing_ok=True)


def _at_the_end(walk: Walk) -> list[torch.Tensor]:
    """The gradient of each window's mean cross-entropy by what leaves the last block."""
    found = []
    with walk.whole_head() as head, torch.enable_grad():
        for part, ids in zip(walk.hidden, walk.batches, strict=True):
            states = part.detach().requires_grad_()
            logits = head(states, ids)[0].float()  # (length, vocabulary)
            loss = nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
            found.append(torch.autograd.grad(loss, states)[0])
    return found


def _backward(
    walk: Walk,
    source: ModelFolder,
    block: int,
    module: nn.Module,
    entering: Activations,
    gradients: list[torch.Tensor],
) -> dict[str, dict[str, float]]:
    """What is found of a block; ``gradients`` are moved to its inputs, in place."""
    prefix = walk.prefix(block) + "."
    weights: dict[str, list[nn.Parameter]] = {half: [] for half in HALVES}
    for linear in source.anatomy.of_block(block):
        weights[half_of(linear)].append(module.get_submodule(linear.name.removeprefix(prefix)).weight)
    every = [weight for half in HALVES for weight in weights[half]]
    names = (str(block), *(f"{block}.{half}" for half in HALVES))
    trace, taylor = dict.fromkeys(HALVES, 0.0), dict.fromkeys(HALVES, 0.0)
    influence = dict.fromkeys(names, 0.0)
    for number, part in enumerate(entering):
        states = part.detach().requires_grad_()
        with torch.enable_grad():
            output = walk.through(block, number, states)
            slopes = torch.autograd.grad(output, [states, *every], gradients[number], allow_unused=True)
        gradients[number] = slopes[0]
        squares = {id(w): g.float().square() for w, g in zip(every, slopes[1:], strict=True) if g is not None}
        for half in HALVES:
            reached = [weight for weight in weights[half] if id(weight) in squares]  # experts may see no token
            trace[half] += sum(float(squares[id(weight)].sum()) for weight in reached) / len(entering)
            taylor[half] += sum(
                float((squares[id(weight)] * weight.detach().square()).sum()) for weight in reached
            ) / len(entering)  # fmt: skip
        for name in names:
            less = part
            if half := name.partition(".")[2]:
                with without(module, source.anatomy.family, [half]):
                    less = walk.batch_through(block, number, part)
            cosine = nn.functional.cosine_similarity(less.float(), output.detach().float(), dim=-1)
            influence[name] += float(1 - cosine.mean()) / len(entering)
    found: dict[str, dict[str, Any]] = {names[0]: {"influence": influence[names[0]]}}
    for half in HALVES:
        values = [weight.detach() for weight in weights[half]]
        found[f"{block}.{half}"] = {
            "trace": trace[half],
            "taylor": taylor[half],
            "squares": sum(float(value.square().sum(dtype=torch.float64)) for value in values),
            "sum": sum(float(value.sum(dtype=torch.float64)) for value in values),
            "count": sum(value.numel() for value in values),
            "influence": influence[f"{block}.{half}"],
        }
    return found
