"""The importance of every block, or half of one, for the output. Drafts and depth pruning drop the least important.

The model is run block by block, so that a model larger than memory can be ranked: once forward for the states, once
backward for the gradients, with one block in memory at a time. Results are written to a journal. A run that was killed
continues at its block.
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
Measured = Mapping[str, Mapping[str, float]]  # unit -> name of a measure -> value, see ``measure_units``


def measure_units(
    model: str | Path | ModelFolder,
    data: Data,
    *,
    samples: int = SAMPLES,
    length: int | None = None,
    spill: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Measure the importance of every block and of its halves.

    samples: the number of windows of the calibration data; every window has its own gradient.
    length: tokens per window; by default 256, or the model's number of positions if it is less.
    spill: a folder that stores the states in place of memory.

    Returns unit -> measure -> value. Let g be the gradient of a window's mean cross-entropy by the weights θ of a half.
    - Blocks and halves have ``influence``: 1 − cos between the block's output with and without the unit.
    - Halves also have ``trace``, the trace of the empirical Fisher information: Σ g², mean over windows;
      ``taylor``: Σ g² θ², mean over windows; and ``squares``, ``sum`` and ``count`` of θ.

    Raises UsageError for windows of fewer than 2 tokens or of more than the model's positions, JettisonError if a value
    is not finite.
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
    return {unit: measures for block_units in units for unit, measures in sorted(block_units.items())}


def check_ranking(method: str, perturbation: str) -> None:
    """Raise UsageError, which lists what is valid, for an unknown method or perturbation."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if perturbation not in PERTURBATIONS:
        raise unknown("perturbation", perturbation, PERTURBATIONS)


def rank(
    measured: Measured, method: str = "fisher", *, perturbation: str = "removal", halves: bool = False, seed: int = 0
) -> dict[str, float]:
    """Score all blocks, or all halves. Units with the lowest scores matter least.

    measured: the result of ``measure_units``.
    method:
        ``fisher``: the trace of the Fisher information times the expected squared perturbation of the weights (SDFP,
            arXiv:2602.05499, by FIT, arXiv:2210.08502).
        Baselines: ``cosine``, block influence (ShortGPT, arXiv:2403.03853); ``magnitude``, Σ θ²; ``random``; ``last``,
            a later unit matters less; ``stride``, whose scores are not used (see ``choose``).
    perturbation: for ``fisher``. The source leaves it open, so all readings are implemented: ``removal``, the mean of
        θ²; ``variance``, the variance of θ; ``elementwise``, Σ g² θ², weight by weight.
    halves: score halves, not blocks.
    seed: for ``random``.
    Returns unit -> score.
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
    """Choose the units to drop: those with the lowest scores, or evenly spaced ones for ``stride``.

    ratio: the share of all units to drop. The first and the last block are never dropped.
    Other arguments: see ``rank``.
    Returns the units in the model's order.
    Raises UsageError for a ratio that drops nothing, or more than the blocks between the first and the last.
    """
    scores = rank(measured, method, perturbation=perturbation, halves=halves, seed=seed)
    units = list(scores)
    count, free = check_choice(units, ratio, method, perturbation)
    if method == "stride":
        return tuple(free[(2 * number + 1) * len(free) // (2 * count)] for number in range(count))
    chosen = set(sorted(free, key=scores.__getitem__)[:count])
    return tuple(unit for unit in units if unit in chosen)


def check_choice(units: Sequence[str], ratio: float, method: str, perturbation: str) -> tuple[int, list[str]]:
    """Return the number of units that ``choose`` drops, and the units among which it chooses. It needs no measurement.

    Raises UsageError as ``choose`` does.
    """
    check_ranking(method, perturbation)
    end_blocks = {units[0].partition(".")[0], units[-1].partition(".")[0]}
    free = [unit for unit in units if unit.partition(".")[0] not in end_blocks]
    count = round(ratio * len(units)) if 0 < ratio < 1 else 0
    if not 1 <= count <= len(free):
        most = len(free) / len(units)
        raise UsageError(
            f"ratio = {ratio:g} of {len(units)} units: it must drop at least one, and the first and the last block "
            f"stay; valid here: {1 / len(units):.3g} to {most:.3g}"
        )
    return count, free


def _score(measured: Measured, unit: str, method: str, perturbation: str) -> float:
    """Return the score of a unit for the methods that use measures."""
    if method == "cosine":
        return measured[unit]["influence"]
    parts = [measured[unit]] if "." in unit else [measured[f"{unit}.{half}"] for half in HALVES]
    total = lambda name: sum(part[name] for part in parts)
    if method == "magnitude":
        return total("squares")
    if perturbation == "elementwise":
        return total("taylor")
    mean = total("sum") / total("count")
    perturbed = total("squares") / total("count") - (mean**2 if perturbation == "variance" else 0.0)
    return total("trace") * perturbed


def _measure(source: ModelFolder, windows: torch.Tensor, journal: Journal, folder: Path, spill: Path | None) -> None:
    """Measure all blocks from the last to the first, and write each to the journal.

    A killed run continues at the lowest measured block, whose gradients it has stored.
    """
    blocks = source.anatomy.blocks
    lowest = next((block for block in reversed(range(blocks)) if journal.last(block=block) is None), -1) + 1
    # The file of the gradients by the inputs of a block, for every window.
    gradient_file = lambda block: folder / f".gradient-{block}.safetensors"
    if lowest < blocks and (stored := read_sealed(gradient_file(lowest))) is None:
        lowest = blocks  # the file is missing or damaged: start again at the last block
    walk = Walk(source, windows, spill=spill, batch=1)
    entering: list[Activations] = []  # the inputs of every block
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
        gradients = [stored[0][str(number)] for number in range(len(windows))] if known else _final_gradients(walk)
        for block in reversed(range(lowest)):
            with walk.block(block) as module:
                units = _backward(walk, source, block, module, entering.pop(), gradients)
            for unit, measures in units.items():
                for name, value in measures.items():
                    if not math.isfinite(value):
                        raise JettisonError(f"{source.name}: {name} of unit {unit} is {value}: its outputs overflow")
            write_sealed(gradient_file(block), {str(number): gradient for number, gradient in enumerate(gradients)})
            journal.add(block=block, units=units)
            gradient_file(block + 1).unlink(missing_ok=True)
            progress.advance(note=f"backward {block}")
    gradient_file(0).unlink(missing_ok=True)


def _final_gradients(walk: Walk) -> list[torch.Tensor]:
    """Return, for every window, the gradient of its mean cross-entropy by the output of the last block.

    A gradient is (1, length, width).
    """
    gradients = []
    with walk.whole_head() as head, torch.enable_grad():
        for part, ids in zip(walk.hidden, walk.batches, strict=True):
            states = part.detach().requires_grad_()
            logits = head(states, ids)[0].float()  # (length, vocabulary)
            loss = nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
            gradients.append(torch.autograd.grad(loss, states)[0])
    return gradients


def _backward(
    walk: Walk,
    source: ModelFolder,
    block: int,
    module: nn.Module,
    entering: Activations,
    gradients: list[torch.Tensor],
) -> dict[str, dict[str, float]]:
    """Measure a block and its halves.

    entering: the inputs of the block, window by window.
    gradients: by the outputs of the block, window by window. They are replaced in place by those by its inputs.
    """
    prefix = walk.prefix(block) + "."
    weights: dict[str, list[nn.Parameter]] = {half: [] for half in HALVES}
    for linear in source.anatomy.of_block(block):
        weights[half_of(linear)].append(module.get_submodule(linear.name.removeprefix(prefix)).weight)
    all_weights = [weight for half in HALVES for weight in weights[half]]
    names = (str(block), *(f"{block}.{half}" for half in HALVES))
    trace, taylor = dict.fromkeys(HALVES, 0.0), dict.fromkeys(HALVES, 0.0)
    influence = dict.fromkeys(names, 0.0)
    for number, part in enumerate(entering):
        states = part.detach().requires_grad_()
        with torch.enable_grad():
            output = walk.through(block, number, states)  # (1, length, width)
            slopes = torch.autograd.grad(output, [states, *all_weights], gradients[number], allow_unused=True)
        gradients[number] = slopes[0]
        squares = {id(w): g.float().square() for w, g in zip(all_weights, slopes[1:], strict=True) if g is not None}
        for half in HALVES:
            reached = [weight for weight in weights[half] if id(weight) in squares]  # an expert may get no token
            trace[half] += sum(float(squares[id(weight)].sum()) for weight in reached) / len(entering)
            taylor[half] += sum(
                float((squares[id(weight)] * weight.detach().square()).sum()) for weight in reached
            ) / len(entering)  # fmt: skip
        for name in names:
            output_without = part  # without the whole block, its input is passed on
            if half := name.partition(".")[2]:
                with without(module, source.anatomy.family, [half]):
                    output_without = walk.batch_through(block, number, part)
            cosine = nn.functional.cosine_similarity(output_without.float(), output.detach().float(), dim=-1)
            influence[name] += float(1 - cosine.mean()) / len(entering)
    measured: dict[str, dict[str, Any]] = {names[0]: {"influence": influence[names[0]]}}
    for half in HALVES:
        values = [weight.detach() for weight in weights[half]]
        measured[f"{block}.{half}"] = {
            "trace": trace[half],
            "taylor": taylor[half],
            "squares": sum(float(value.square().sum(dtype=torch.float64)) for value in values),
            "sum": sum(float(value.sum(dtype=torch.float64)) for value in values),
            "count": sum(value.numel() for value in values),
            "influence": influence[f"{block}.{half}"],
        }
    return measured
