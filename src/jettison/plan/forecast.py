"""What a run will take on this machine, before it starts: counted from shapes and the measured speed of products."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jettison import registry
from jettison.compress import assign
from jettison.devices import find_device
from jettison.formats.manifest import read_manifest
from jettison.models import ModelFolder
from jettison.plan.presets import adapter_rank, predict
from jettison.recipe import Recipe, load_recipe
from jettison.recover.run import recovery_step

EFFICIENCY = 0.4  # of the measured speed of a large product, what real layers reach
SAMPLING_EFFICIENCY = 0.1  # the same for writing text token by token


def forecast(model: str | Path, recipe: Recipe) -> dict[str, Any]:
    """Per step: peak memory and disk in bytes, and time in seconds, roughly.

    Also checks that the recipe fits the model: raises UsageError as ``compress`` would.
    """
    source = ModelFolder(model)
    jobs = assign(source, recipe)
    anatomy, flops = source.anatomy, find_device("this").flops * EFFICIENCY
    width = source.config.get_text_config().hidden_size
    calibrated = any(registry.find("quantize", job.step.method).needs for job in jobs)
    tokens = recipe.calibration["samples"] * recipe.calibration["length"] if calibrated else 0

    largest = max(sum(linear.weights for linear in anatomy.of_block(block)) for block in [None, *range(anatomy.blocks)])
    hessians = sum({job.linear.inputs: job.linear.columns**2 for job in jobs if job.linear.block == 0}.values())
    memory = 8 * largest + (4 * hessians + 12 * tokens * width if calibrated else 0)
    work = sum(_quantization_work(job, tokens) for job in jobs) + 4 * tokens * anatomy.parameters
    if recipe.calibration["text"] == "synthetic" and calibrated:
        work += 2 * tokens * anatomy.parameters * EFFICIENCY / SAMPLING_EFFICIENCY
    stored = predict(source, recipe, find_device("this"), context=0).memory
    steps = [{"step": "compress", "memory": memory, "disk": stored, "seconds": work / flops}]

    for step in recipe.of("recover"):
        options = step.options
        seen = options["samples"] * options["length"]
        work = 8 * seen * options["epochs"] * anatomy.parameters
        if "synthetic" in options["data"]:
            work += 2 * seen * anatomy.parameters * EFFICIENCY / SAMPLING_EFFICIENCY
        trained = sum(adapter_rank(linear, recipe) * (linear.rows + linear.columns) for linear in anatomy)
        if "scales" in options["train"]:
            trained += sum(job.linear.rows * job.grid.groups(job.linear.columns) for job in jobs)
        activations = 4 * options["batch"] * options["length"] * width * anatomy.blocks * 16
        memory = anatomy.parameters * 8 + trained * 16 + activations
        steps.append({"step": "recover", "memory": memory, "disk": 14.0 * trained + 8 * seen, "seconds": work / flops})
    return {"steps": steps}


def forecast_recovery(
    folder: str | Path, changes: Iterable[str] = (), teacher: str | Path | None = None
) -> dict[str, Any]:
    """As ``forecast``, for recovering a folder that ``compress`` wrote."""
    manifest = read_manifest(folder)
    recipe = load_recipe(manifest["recipe"])
    step = recovery_step(recipe, changes)
    whole = forecast(teacher or manifest["teacher"]["folder"], replace(recipe, steps=(*recipe.of("quantize"), step)))
    return {"steps": whole["steps"][1:]}


def _quantization_work(job, tokens: int) -> float:
    """Arithmetic of one linear: its range search, and for methods with a Hessian that and its factor; for those that
    alternate with a side path, all of it again and an eigenvalue problem each time."""
    linear, search = job.linear, 6 * 64 * job.linear.weights
    if not registry.find("quantize", job.step.method).needs:
        return search
    once = search + linear.columns**2 * (linear.rows + linear.columns)
    narrow, wide = sorted((linear.rows, linear.columns))
    again = once + 2 * narrow**2 * wide + 9 * narrow**3
    return 2 * tokens * linear.columns**2 + once + job.step.options.get("iterations", 0) * again
