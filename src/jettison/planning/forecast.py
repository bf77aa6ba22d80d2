"""Forecasts of a run on this machine before it starts: time, memory and disk of every step."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from jettison.core.progress import bar, silent
from jettison.devices.device import find_device
from jettison.encodings.quantized import AT_ONCE
from jettison.formats.dequantized import open_source
from jettison.formats.manifest import read_manifest
from jettison.graph.dense import training_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.walk import Walk, require_states
from jettison.pipeline import trial
from jettison.pipeline.first_step import first_step
from jettison.pipeline.generation import PROMPTS, TOKENS
from jettison.pipeline.jobs import Job, assign
from jettison.pipeline.kept import with_kept
from jettison.pipeline.program import check_program
from jettison.pipeline.recovery import recovery_step
from jettison.pipeline.trial import WRITTEN_AT_ONCE
from jettison.planning.cost import Setting, predict
from jettison.planning.forecast_whole import forecast_whole
from jettison.recipe.recipe import Recipe, load_recipe, with_images, with_windows
from jettison.recipe.registry import default_method

DAY = 86400.0
FEW = 1 << 23  # weights; up to this many outside the blocks are tried completely


def forecast(
    model: str | Path,
    recipe: Recipe,
    *,
    texts: Iterable[str] = (),
    tokens: int | None = None,
    runtime: str | None = None,
    images: str | Path | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """Forecast every step of a run by trying small parts of it (see trial.py).

    This takes from seconds to a few minutes, about as long as compressing one block of the model.
    texts, tokens, images, count: what ``fit`` will measure on; without texts and images, no evaluation is forecast.
    images: also the calibration images of an image classifier, unless the recipe names others.
    Returns ``steps``, each with ``seconds``, ``memory`` (peak resident bytes) and ``disk`` (bytes), and ``warnings``,
    sentences for the user.
    Raises UsageError if the recipe does not fit the model or the runtime, as ``compress`` would.
    """
    source = open_source(model)
    recipe = with_windows(recipe, source.positions)
    if not recipe.calibration.get("images"):
        recipe = with_images(recipe, images)
    jobs = with_kept(source, assign(source, recipe, runtime), runtime)
    if first_step(recipe, "program"):
        check_program(source, recipe)
    if not source.anatomy.family.chain:
        with silent():
            steps = forecast_whole(source, recipe, jobs, trial.amount(source, images, count) if images else None)
        warnings = _warnings(steps)
        if recipe.of("depth"):
            warnings.insert(
                0, "depth: a rough estimate, from one training step on a few images; the search may end sooner"
            )
        if recipe.of("program"):
            warnings.insert(0, "program: a rough estimate, from one call of the denoiser; evaluating it is not counted")
        return {"steps": steps, "warnings": warnings}
    counts = [trial.count_windows(source, text, tokens) for text in texts]
    with bar("trying", 3) as progress:
        with silent():
            steps = [_compression(source, recipe, jobs)]
        progress.advance(note="a block")
        with silent():
            recoveries = [_recovery(source, jobs, step) for step in recipe.of("recover")]
        progress.advance(note="a training step")
        with silent():
            before, after = _evaluations(source, jobs, sum(counts), bool(recoveries)) if counts else ([], [])
        progress.advance(note="an evaluation")
    steps += [*before, *recoveries, *after]
    return {"steps": steps, "warnings": _warnings(steps)}


def forecast_recovery(
    folder: str | Path, changes: Iterable[str] = (), teacher: str | Path | None = None
) -> dict[str, Any]:
    """Forecast the recovery of a folder that ``compress`` wrote; returns what ``forecast`` does.

    teacher: the original model, if it has moved since the compression.
    """
    manifest = read_manifest(folder)
    recipe = load_recipe(manifest["recipe"])
    source = open_source(teacher or manifest["teacher"]["folder"])
    if not source.anatomy.family.chain:
        recipe = replace(recipe, steps=(*recipe.of("quantize"), recovery_step(recipe, changes)))
        with silent():
            steps = forecast_whole(source, recipe, assign(source, recipe), None)[1:]
        return {"steps": steps, "warnings": _warnings(steps)}
    with silent():
        steps = [_recovery(source, assign(source, recipe), recovery_step(recipe, changes, source.positions))]
    return {"steps": steps, "warnings": _warnings(steps)}


def _compression(source: ModelFolder, recipe: Recipe, jobs: list[Job]) -> dict[str, Any]:
    """Forecast ``compress``: one block of every kind is compressed, and its time multiplied by their number."""
    needs = frozenset().union(*(job.needs for job in jobs))
    samples, length = recipe.calibration["samples"], recipe.calibration["length"]
    seconds, walk = 0.0, None
    if needs:
        if recipe.calibration["text"] == "synthetic":
            seconds += _rounded_up(samples) * trial.synthesis_seconds(source, length)
        width = source.skeleton.get_input_embeddings().embedding_dim
        require_states(source, samples, length, streams=1 + ("cross" in needs))
        with trial.timed() as entry:
            walk = Walk(source, torch.randn(samples, length, width), twice="cross" in needs)
        seconds += entry.seconds
    memory = 0.0
    for blocks in _kinds(source, jobs):
        tried = trial.try_block(source, jobs, blocks[len(blocks) // 2], walk)
        seconds += tried.seconds * len(blocks)
        memory = max(memory, tried.memory)
    outside = [job for job in jobs if job.linear.block is None and not job.tied]
    if sum(linear.weights for linear in source.anatomy if linear.block is None) <= FEW:
        tried = trial.try_block(source, jobs, None, walk)
        seconds, memory = seconds + tried.seconds, max(memory, tried.memory)
    else:
        seconds += sum(trial.try_rows(source, job, FEW) for job in outside)
        packed = sum(job.linear.weights * (job.grid.bits if job.grid else 16) / 8 for job in outside)
        unquantized = sum(source.checkpoint.bytes_of(tensor) for tensor in source.tensors_of(None))
        seconds += (packed + unquantized) * trial.try_writing()
        codes = sum(job.linear.weights for job in outside)
        largest = max((job.linear.weights for job in outside), default=0)
        work = 12 * AT_ONCE if walk is None else 28 * largest  # second-order methods hold five copies in float32
        memory = max(memory, psutil.Process().memory_info().rss + unquantized + packed + codes + work)
    quantized = replace(recipe, steps=tuple(recipe.of("quantize")))
    stored = predict(source, quantized, find_device("this"), Setting(context=0)).memory
    return {"step": "compress", "seconds": seconds, "memory": memory, "disk": stored}


def _kinds(source: ModelFolder, jobs: list[Job]) -> list[list[int]]:
    """Group the blocks that have the same linears and the same steps."""
    kinds: dict[tuple, list[int]] = {}
    for block in range(source.anatomy.blocks):
        work = [(job.linear.role, str(job.steps), job.linear.weights) for job in jobs if job.linear.block == block]
        kinds.setdefault(tuple(work), []).append(block)
    return list(kinds.values())


def _recovery(source: ModelFolder, jobs: list[Job], step) -> dict[str, Any]:
    """Forecast ``recover`` from one training step."""
    options, anatomy = step.options, source.anatomy
    source.check_window(options["length"], "recover.length")
    per_step, start = trial.training_seconds(source, jobs, step)
    parts = options["data"].split("+")
    written = options["samples"] / len(parts) if "synthetic" in parts else 0
    seconds = start + per_step * max(1, options["samples"] * options["epochs"] / options["batch"])
    if written:
        seconds += _rounded_up(written) * trial.synthesis_seconds(source, options["length"])
    trained = 0  # parameters
    for linear in anatomy:
        if (
            "lora" in options["train"]
            and step.where.matches(linear.roles, linear.block)
            and "embed" not in linear.roles
        ):
            trained += options["rank"] * (linear.rows + linear.columns)
    if "scales" in options["train"]:
        trained += sum(job.linear.rows * job.grid.groups(job.linear.columns) for job in jobs if job.grid)
    if "weights" in options["train"]:
        matched = [linear for linear in anatomy if step.where.matches(linear.roles, linear.block)]
        packed = {job.linear for job in jobs if job.grid}
        trained += sum(linear.weights for linear in matched if linear not in packed and "embed" not in linear.roles)
    width = source.skeleton.get_input_embeddings().embedding_dim
    activations = 4 * options["batch"] * options["length"] * width * anatomy.blocks * 16
    weights = anatomy.parameters * (training_dtype().itemsize + 4)
    memory = psutil.Process().memory_info().rss + weights + 16 * trained + activations
    disk = 14 * trained + 8 * written * options["length"]
    return {"step": "recover", "seconds": seconds, "memory": memory, "disk": disk}


def _evaluations(
    source: ModelFolder, jobs: list[Job], windows: int, recovers: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Forecast the evaluations of ``fit``: before recovery (the original and the quantized model), and after it."""
    one, both = (windows * trial.evaluation_seconds(source, jobs, quantized) for quantized in (False, True))
    plain, packed = (PROMPTS * TOKENS * trial.speech_seconds(source, jobs, quantized) for quantized in (False, True))
    base, parameters = psutil.Process().memory_info().rss, source.anatomy.parameters
    entry = lambda step, seconds: {"step": step, "seconds": seconds, "memory": base + 5.0 * parameters, "disk": 0.0}
    after = [entry("evaluate again", both + packed)] if recovers else []
    return [entry("evaluate", one + both + plain + packed)], after


def _rounded_up(samples: float) -> float:
    """Round up to whole batches: text is written a batch at a time."""
    return -(-samples // WRITTEN_AT_ONCE) * WRITTEN_AT_ONCE


def _warnings(steps: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for every step that would take a day or more, or more memory than is free."""
    at_once = default_method("quantize_at_once")
    warnings, free = [], psutil.virtual_memory().available
    cheaper = {
        "recover": "fewer samples (--set recover.samples=...), fewer or shorter windows, or a machine with a GPU",
        "depth": "fewer epochs (--set depth.epochs=...), fewer images, or a machine with a GPU",
        "program": "fewer steps of the search (--set program.search_steps=...), or a machine with a GPU",
        "compress": f"a method without calibration (--set quantize.method={at_once}), or a faster machine",
    }
    for step in steps:
        if step["seconds"] >= DAY:
            advice = cheaper.get(step["step"], "fewer tokens")
            warnings.append(f"{step['step']} would take {step['seconds'] / DAY:.1f} days on this machine: {advice}")
        if step["memory"] > free:
            warnings.append(
                f"{step['step']} needs {step['memory'] / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free here"
            )
    return warnings
