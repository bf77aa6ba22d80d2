"""Runs a method of depth pruning on a model in memory: train, merge, check the merge, measure.

The depth step of a recipe (``pipeline.depth``) and ``prune_depth`` for a module of your own share this.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import file_digest
from jettison.core.progress import say
from jettison.formats.manifest import NAME as MANIFEST
from jettison.graph.described_files import NAME as MODULES
from jettison.graph.folding import logits_of
from jettison.graph.merge import merge_twins
from jettison.recipe.registry import find
from jettison.runtime.latency import latencies
from jettison.training.depth import DepthTask, Pruned

MOST_DIFFERENT = 1e-3  # of the logits before and after merging, relative to their largest value
COPIES = 6  # bytes of memory per byte of weights: model, teacher, optimizer, gradients, a merged copy
EXAMPLES = 8  # images on which the merged model is compared


def check_options(options: Mapping[str, Any], blocks: int, images: int, name: str) -> None:
    """Raise UsageError for options of a depth method that do not fit.

    blocks: how many blocks of the model can be pruned.
    images: how many there are to train on.
    name: of the model.
    """
    asked = options.get("blocks")
    if isinstance(asked, int) and asked > blocks:
        raise UsageError(f"blocks = {asked}: {name} has {blocks} blocks that can be pruned")
    if options["batch"] > images:
        raise UsageError(f"depth.batch = {options['batch']}: there are {images} images to train on")


def run_depth(task: DepthTask, method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Run or continue a method, and merge what it pruned: the model of the task becomes the pruned model.

    Returns a record for jettison.json, and path -> the module that is to be in its place: those that were merged, and
    ``nn.Identity`` for blocks that were dropped and norms that were folded.
    Raises UsageError as the method does; JettisonError if the merged model computes something else.
    """
    pruned = find("depth", method).function(task, **options)
    model = task.model.cpu().eval()
    merged, difference = ([], 0.0) if pruned.dropped else _merge(task, pruned)
    accuracy = {
        "original": task.accuracy(task.teacher, recalibrated=False),
        "pruned": task.accuracy(model, recalibrated=False),
        "images": task.data.held_out,
    }
    times = task.measure({"original": task.teacher, "pruned": model})
    task.journal.add(measured=True, milliseconds={name: round(time, 4) for name, time in times.items()})
    say(
        f"depth: {len(pruned.blocks)} of {len(task.residuals)} blocks pruned; on {accuracy['images']} held-out images "
        f"accuracy is {accuracy['pruned']:.1%}, of the original {accuracy['original']:.1%}; one image takes "
        f"{times['pruned']:.3g} ms, with the original {times['original']:.3g} ms"
    )
    section = {
        "method": method, "blocks": len(task.residuals), "pruned": pruned.blocks, "merged": merged,
        "dropped": pruned.dropped, "difference": difference, "accuracy": accuracy,
        "paths": [residual.block for residual in task.residuals],
    }  # fmt: skip
    return section, _replaced(task, pruned)


def _merge(task: DepthTask, pruned: Pruned) -> tuple[list[dict[str, Any]], float]:
    """Merge the twins, in place. Returns what was merged, and how far logits differ, relative to their largest."""
    example = task.data.calibration[0][:EXAMPLES]
    with torch.no_grad():
        before = task.logits(task.model, example)
        merged = merge_twins(task.model, pruned.twins)
        after = task.logits(task.model, example)
    difference = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
    if not difference <= MOST_DIFFERENT:
        raise JettisonError(f"the merged model differs from the pruned one by {difference:.1e} of its largest logit")
    return merged, difference


def _replaced(task: DepthTask, pruned: Pruned) -> dict[str, nn.Module]:
    replaced: dict[str, nn.Module] = {}
    for residual in (task.residuals[number] for number in pruned.blocks):
        if pruned.dropped:
            replaced[residual.block] = nn.Identity()
            continue
        replaced[residual.path] = task.model.get_submodule(residual.path)
        if residual.absorbs:
            replaced[residual.absorbs] = nn.Identity()
    return replaced


def logits_on_device(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model, which are where its parameters are."""
    return logits_of(model, pixels.to(next(model.parameters()).device))


def milliseconds(models: Mapping[str, nn.Module], example: torch.Tensor) -> dict[str, float]:
    """Return the median latency of models for one image, in PyTorch on the CPU, measured in turns.

    example: (1, channels, height, width).
    """
    copies = {name: deepcopy(model).cpu().eval() for name, model in models.items()}
    for model in copies.values():
        if getattr(model, "_supports_sdpa", False):
            model.set_attn_implementation("sdpa")
    return {name: times["median_ms"] for name, times in latencies(copies, example).items()}


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that the outputs of a written model depend on; {} if there is none."""
    names = ("model.safetensors", "config.json", MODULES, MANIFEST)
    return {name: file_digest(folder / name) for name in names if (folder / name).is_file()}
