"""Forecasts for a model that is not walked block by block: an image classifier, or the denoiser of a pipeline."""

from typing import Any

import psutil

from jettison.graph.folder import ModelFolder
from jettison.pipeline import trial
from jettison.pipeline.depth import check_depth
from jettison.pipeline.depth_trial import try_depth
from jettison.pipeline.jobs import Job
from jettison.pipeline.program_trial import try_program
from jettison.recipe.recipe import Recipe

TRAINING = 4  # forward passes that training on one sample costs: both models forward, the student backward
FEW = 512  # images that are compared for the report, and timed


def forecast_whole(source: ModelFolder, recipe: Recipe, jobs: list[Job], images: int | None) -> list[dict[str, Any]]:
    """Return the steps as ``forecast`` does. images: number of images to evaluate; None for no evaluation."""
    per_image, model = trial.sample_seconds(source), 4.0 * source.anatomy.parameters  # seconds, bytes in float32
    needs = frozenset().union(*(job.needs for job in jobs))
    streams = 1 + ("cross" in needs)
    walk = trial.small_walk(source, streams > 1) if needs else None
    used = [block for block in range(source.anatomy.blocks) if any(job.linear.block == block for job in jobs)]
    seconds, memory = 0.0, 0.0
    for block in [*used, None]:
        tried = trial.try_block(source, jobs, block, walk)
        seconds, memory = seconds + tried.seconds, max(memory, tried.memory)
    if needs:  # to compute the inputs of a block, half of the model runs on average
        seconds += recipe.calibration["samples"] * per_image * streams * (len(used) / 2 + 2)
    steps = []
    for step in recipe.of("depth"):
        check_depth(source, recipe)
        tried = try_depth(source, recipe, step)
        steps.append(_entry("depth", tried.seconds, tried.memory, 3 * model))
    for step in recipe.of("program"):
        tried = try_program(source, step)
        steps.append(_entry("program", tried.seconds, tried.memory, 0.0))
    steps += [_entry("compress", seconds, memory + streams * model, _stored(source, jobs))]
    stages = 2
    for step in recipe.of("recover"):
        options = step.options
        passes = TRAINING * max(options["batch"], options["samples"] * options["epochs"])
        steps.append(_entry("recover", passes * per_image, _resident() + 4 * model, model))
        stages += 1
    if images is not None:  # the original runs once for itself and again beside every other stage
        read = (images + FEW) * (2 * stages - 1)
        steps.append(_entry("evaluate", read * per_image, _resident() + 2 * model, 0.0))
    return steps


def _stored(source: ModelFolder, jobs: list[Job]) -> float:
    """Return the bytes of the compressed checkpoint."""
    saved = 0.0
    for job in jobs:
        if job.grid:
            before = 8 * source.checkpoint.bytes_of(source.locate(f"{job.linear.name}.weight")[0])  # bits
            saved += (before - job.linear.weights * job.grid.bits_per_weight(job.linear.columns)) / 8
    return source.checkpoint.tensor_bytes - saved


def _resident() -> float:
    """Return the bytes of memory that this process has now."""
    return float(psutil.Process().memory_info().rss)


def _entry(step: str, seconds: float, memory: float, disk: float) -> dict[str, Any]:
    return {"step": step, "seconds": seconds, "memory": memory, "disk": disk}
