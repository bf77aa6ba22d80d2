"""The depth step of a recipe: prune the depth of an image classifier by training it, and write the result as a folder.

``compress`` runs this first and then applies the other steps to that folder, OUT/depth/model. Every stage (supernet,
search, progressive training, merging) is recorded in OUT/depth/journal.jsonl, and a killed run continues.
"""

import shutil
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import file_digest, write_json
from jettison.core.journal import Journal
from jettison.core.progress import say
from jettison.core.tensors import write_tensors
from jettison.domains.domain import find_domain
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import update_manifest
from jettison.formats.writer import copy_companions
from jettison.graph.dense import load_dense, require_memory, stored_dtype
from jettison.graph.described_files import write_replaced
from jettison.graph.folder import ModelFolder
from jettison.graph.merge import merge_twins
from jettison.graph.residual import find_residuals
from jettison.graph.skeleton import run_model
from jettison.graph.surgery import shortened
from jettison.recipe.recipe import Recipe, Step
from jettison.recipe.registry import find
from jettison.runtime.latency import latencies
from jettison.training.depth import DepthTask, Pruned

FOLDER, MODEL, JOURNAL = "depth", "model", "journal.jsonl"
MOST_DIFFERENT = 1e-3  # of the logits before and after merging, relative to their largest value
COPIES = 6  # bytes of memory per byte of weights: model, teacher, optimizer, gradients, a merged copy


def depth_step(recipe: Recipe) -> Step | None:
    """Return the depth step of a recipe; None if it has none.

    Raises UsageError if there are several, if it is not the first step, or if it names a part of the model.
    """
    steps = recipe.of("depth")
    if not steps:
        return None
    if len(steps) > 1 or recipe.steps[0] is not steps[0]:
        raise UsageError(f"«{steps[-1]}»: a recipe has at most one depth step, and it comes first")
    if steps[0].where.role or steps[0].where.blocks:
        raise UsageError(f"«{steps[0]}»: a depth step chooses its blocks itself; leave out 'where'")
    return steps[0]


def check_depth(source: ModelFolder, recipe: Recipe) -> None:
    """Raise UsageError, before any work, if the depth of a model cannot be pruned, or its data is missing."""
    data = find_domain(source).labelled(source, recipe)
    residuals = find_residuals(source.new_skeleton(), source.anatomy)
    blocks = depth_step(recipe).options.get("blocks")
    if isinstance(blocks, int) and blocks > len(residuals):
        raise UsageError(f"blocks = {blocks}: {source.name} has {len(residuals)} blocks that can be pruned")
    if depth_step(recipe).options["batch"] > data.count:
        raise UsageError(
            f"depth.batch = {depth_step(recipe).options['batch']}: there are {data.count} images to train on"
        )


def prune_depth(source: ModelFolder, recipe: Recipe, out: Path, seed: int, save_every: float = 60.0) -> ModelFolder:
    """Run or continue the depth step of a recipe, in OUT/depth. Returns the folder of the pruned model.

    Raises UsageError as the method and ``check_depth``; JettisonError if the model does not fit in memory, or if the
    merged model computes something else.
    """
    step, folder = depth_step(recipe), out / FOLDER
    journal = Journal(folder / JOURNAL, _inputs(source, recipe, step, seed))
    model_folder = folder / MODEL
    done = journal.last(finished=True)
    if done and _intact(model_folder, done["hashes"]):
        return ModelFolder(model_folder)
    require_memory(4 * COPIES * source.anatomy.parameters, f"pruning the depth of {source.name}")
    model = _open(source)
    task = DepthTask(
        model=model,
        residuals=find_residuals(model, source.anatomy),
        data=find_domain(source).labelled(source, recipe),
        logits=_logits,
        measure=lambda models: _milliseconds(models, source),
        folder=folder,
        journal=journal,
        seed=seed,
        save_every=save_every,
    )
    pruned = find("depth", step.method).function(task, **step.options)
    _finish(task, source, pruned, recipe, step, model_folder, seed)
    journal.add(finished=True, hashes=_hashes(model_folder))
    for state in folder.glob("*.safetensors"):
        state.unlink()
    return ModelFolder(model_folder)


def _inputs(source: ModelFolder, recipe: Recipe, step: Step, seed: int) -> dict[str, Any]:
    """Return everything that the result depends on, for the journal's first line."""
    return {
        "kind": "depth",
        "model": source.identity(),
        "step": {"method": step.method} | step.options,
        "images": find_domain(source).calibration_digest(recipe.calibration),
        "seed": seed,
        "versions": {"jettison": version("jettison"), "torch": torch.__version__},
    }


def _open(source: ModelFolder) -> nn.Module:
    """Load a model for training."""
    model = load_dense(source, torch.float32).to(memory_format=torch.channels_last)
    if getattr(model, "_supports_sdpa", False):  # the backward pass of PyTorch's fused attention is slow on the CPU
        model.set_attn_implementation("eager")
    return model


def original_ms(source: ModelFolder) -> float:
    """Measure the milliseconds of a model for one image, as the depth step does."""
    return _milliseconds({"original": load_dense(source, torch.float32)}, source)["original"]


def _logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return run_model(model, pixels.to(next(model.parameters()).device)).logits


def _milliseconds(models: dict[str, nn.Module], source: ModelFolder) -> dict[str, float]:
    """Return the median latency of models for one image, in PyTorch, measured in turns."""
    copies = {name: deepcopy(model).cpu().eval() for name, model in models.items()}
    for model in copies.values():
        if getattr(model, "_supports_sdpa", False):
            model.set_attn_implementation("sdpa")
    measured = latencies(copies, find_domain(source).example(source)[0])
    return {name: times["median_ms"] for name, times in measured.items()}


def _finish(
    task: DepthTask, source: ModelFolder, pruned: Pruned, recipe: Recipe, step: Step, folder: Path, seed: int
) -> None:
    """Merge what was pruned, check that the model computes the same, and write it."""
    model, residuals = task.model.cpu().eval(), [task.residuals[number] for number in pruned.blocks]
    replaced, config = {}, dict(source.raw_config)
    if pruned.dropped:
        config, replaced = _without_blocks(model, source, residuals)
        merged, difference = [], 0.0
    else:
        example = task.data.calibration[0][:8]
        with torch.no_grad():
            before = _logits(model, example)
            merged = merge_twins(model, pruned.twins)
            after = _logits(model, example)
        difference = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
        if not difference <= MOST_DIFFERENT:
            raise JettisonError(
                f"the merged model differs from the pruned one by {difference:.1e} of its largest logit"
            )
        for twin in pruned.twins:
            replaced[twin.residual.path] = model.get_submodule(twin.residual.path)
            if twin.residual.absorbs:
                replaced[twin.residual.absorbs] = nn.Identity()
    accuracy = {
        "original": round(task.accuracy(task.teacher, recalibrated=False), 6),
        "pruned": round(task.accuracy(model, recalibrated=False), 6),
        "images": sum(len(labels) for _, labels in task.data.validation),
    }
    times = task.measure({"original": task.teacher, "pruned": model})
    task.journal.add(measured=True, milliseconds={name: round(time, 4) for name, time in times.items()})
    say(
        f"depth: {len(pruned.blocks)} of {len(task.residuals)} blocks pruned; on {accuracy['images']} held-out images "
        f"accuracy is {accuracy['pruned']:.1%}, of the original {accuracy['original']:.1%}; one image takes "
        f"{times['pruned']:.3g} ms, with the original {times['original']:.3g} ms"
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dtype = stored_dtype(source)
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)
    if replaced:
        write_replaced(folder, replaced)
    copy_companions(source.folder, folder)
    section = {
        "method": step.method, "blocks": len(task.residuals), "pruned": pruned.blocks, "merged": merged,
        "dropped": pruned.dropped, "difference": difference, "accuracy": accuracy,
        "paths": [residual.block for residual in task.residuals],
    }  # fmt: skip
    write_manifest(folder, source, recipe, section, seed)


def write_manifest(folder: Path, source: ModelFolder, recipe: Recipe, section: dict[str, Any], seed: int) -> None:
    """Write the jettison.json of the pruned model, so that it is an output of Jettison of its own."""
    update_manifest(
        folder,
        jettison=version("jettison"),
        teacher={"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()},
        license=source.license,
        recipe=Recipe(recipe.name, (depth_step(recipe),), recipe.use, recipe.calibration).to_dict(),
        seed=seed,
        versions={"torch": version("torch"), "transformers": version("transformers")},
        hashes={"model.safetensors": file_digest(folder / "model.safetensors")},
        blocks=[],
        depth=section,
    )


def _without_blocks(
    model: nn.Module, source: ModelFolder, residuals: list
) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Leave out some blocks of a model, in place. Returns its config and its replaced modules.

    Where the config says how many blocks there are in one list, the result is an ordinary checkpoint.
    """
    family, blocks = source.anatomy.family, source.anatomy.blocks
    numbers = [source.anatomy.block_of(residual.block) for residual in residuals]
    stay = [number for number in range(blocks) if number not in numbers]
    if "*" not in family.blocks and source.raw_config.get("num_hidden_layers") == blocks:
        for number in sorted(numbers, reverse=True):
            del model.get_submodule(family.blocks)[number]
        return dict(source.raw_config) | shortened(source.raw_config, stay, blocks), {}
    for residual in residuals:
        model.set_submodule(residual.block, nn.Identity())
    return dict(source.raw_config), {residual.block: nn.Identity() for residual in residuals}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of the files of the pruned model that its outputs depend on."""
    names = ("model.safetensors", "config.json", "modules.json", MANIFEST)
    return {name: file_digest(folder / name) for name in names if (folder / name).is_file()}


def _intact(folder: Path, hashes: dict[str, str]) -> bool:
    return folder.is_dir() and _hashes(folder) == hashes
