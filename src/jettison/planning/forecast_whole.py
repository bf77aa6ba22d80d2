"""What a run on a model that stays whole will take: an image classifier, which is small beside its images."""

from typing import Any

import psutil

from jettison.graph.folder import ModelFolder
from jettison.pipeline import trial
from jettison.pipeline.jobs import Job
from jettison.recipe.recipe import Recipe

TRAINING = 4  # passes for a sample: both models forward, the student back
FEW = 512  # images that are looked at for a report, and timed


def forecast_whole(source: ModelFolder, recipe: Recipe, jobs: list[Job], images: int | None) -> list[dict[str, Any]]:
    """As the steps of ``forecast``. images: how many are evaluated; None: nothing is."""
    each, held = trial.sample_seconds(source), 4.0 * source.anatomy.parameters
    needs = frozenset().union(*(job.needs for job in jobs))
    streams = 1 + ("cross" in needs)
    walk = trial.small_walk(source, streams > 1) if needs else None
    used = [block for block in range(source.anatomy.blocks) if any(job.linear.block == block for job in jobs)]
    seconds, memory = 0.0, 0.0
    for block in [*used, None]:
        tried = trial.try_block(source, jobs, block, walk)
        seconds, memory = seconds + tried.seconds, max(memory, tried.memory)
    if needs:  # a block's inputs are what half of the model makes, on average
        seconds += recipe.calibration["samples"] * each * streams * (len(used) / 2 + 2)
    steps = [_entry("compress", seconds, memory + streams * held, _stored(source, jobs))]
    stages = 2
    for step in recipe.of("recover"):
        options = step.options
        passes = TRAINING * max(options["batch"], options["samples"] * options["epochs"])
        steps.append(_entry("recover", passes * each, _now() + 4 * held, held))
        stages += 1
    if images is not None:  # the original is read beside the others again
        read = (images + FEW) * (2 * stages - 1)
        steps.append(_entry("evaluate", read * each, _now() + 2 * held, 0.0))
    return steps


def _stored(source: ModelFolder, jobs: list[Job]) -> float:
    """Bytes of the result."""
    saved = 0.0
    for job in jobs:
        if job.grid:
            now = 8 * source.checkpoint.bytes_of(source.locate(f"{job.linear.name}.weight")[0])
            saved += (now - job.linear.weights * job.grid.bits_per_weight(job.linear.columns)) / 8
    return source.checkpoint.tensor_bytes - saved


def _now() -> float:
    return float(psutil.Process().memory_info().rss)


def _entry(step: str, seconds: float, memory: float, disk: float) -> dict[str, Any]:
    return {"step": step, "seconds": seconds, "memory": memory, "disk": disk}
