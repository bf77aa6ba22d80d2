"""The depth step of a recipe: prune the depth of an image classifier by training it, and write the result as a folder.

``compress`` runs this first and then applies the other steps to that folder, OUT/depth/model. Every stage (supernet,
search, progressive training, merging) is recorded in OUT/depth/journal.jsonl, and a killed run continues.
"""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.files import file_digest, write_json
from jettison.core.journal import Journal
from jettison.core.tensors import write_tensors
from jettison.domains.domain import find_domain
from jettison.formats.manifest import update_manifest
from jettison.formats.writer import copy_companions
from jettison.graph.dense import load_dense, require_memory, stored_dtype
from jettison.graph.described import describe
from jettison.graph.described_files import write_replaced
from jettison.graph.folder import ModelFolder
from jettison.graph.residual import Residual, find_residuals
from jettison.graph.surgery import shortened
from jettison.pipeline.depth_run import COPIES, check_options, hashes_of, logits_on_device, milliseconds, run_depth
from jettison.pipeline.first_step import JOURNAL, first_step, remove_states, undone_if_refused
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import DepthTask, Labelled

FOLDER, MODEL = "depth", "model"


def check_depth(source: ModelFolder, recipe: Recipe) -> Labelled:
    """Check, before any work, that the depth of a model can be pruned. Returns the images to train on.

    Raises UsageError if it cannot, if a merged block could not be written, and for images that cannot be used.
    """
    data = find_domain(source).labelled(source, recipe)
    residuals = find_residuals(source.new_skeleton(), source.anatomy)
    check_options(first_step(recipe, "depth").options, len(residuals), data.count, source.name)
    for residual in residuals:
        if after := residual.pruned_after or residual.after:
            describe(after, f"{residual.path}, the activation after it")
    return data


def prune_folder(
    source: ModelFolder, recipe: Recipe, data: Labelled, out: Path, seed: int, save_every: float = 60.0
) -> ModelFolder:
    """Run or continue the depth step of a recipe, in OUT/depth. Returns the folder of the pruned model.

    data: what ``check_depth`` returned.
    Raises UsageError as the method does, and leaves nothing behind; JettisonError if the model does not fit in memory,
    or if the merged model computes something else.
    """
    step, folder = first_step(recipe, "depth"), out / FOLDER
    with undone_if_refused(folder):
        journal = Journal(folder / JOURNAL, _inputs(source, recipe, step, seed))
        model_folder = folder / MODEL
        done = journal.last(finished=True)
        if not (done and hashes_of(model_folder) == done["hashes"]):
            require_memory(4 * COPIES * source.anatomy.parameters, f"pruning the depth of {source.name}")
            model = open_for_training(source)
            task = DepthTask(
                model=model,
                residuals=find_residuals(model, source.anatomy),
                data=data,
                logits=logits_on_device,
                measure=lambda models: milliseconds(models, find_domain(source).example(source)[0]),
                folder=folder,
                journal=journal,
                seed=seed,
                save_every=save_every,
            )
            section, replaced = run_depth(task, step.method, step.options)
            _write(task, source, section, replaced, recipe, model_folder)
            journal.add(finished=True, hashes=hashes_of(model_folder))
    remove_states(folder)
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


def open_for_training(source: ModelFolder) -> nn.Module:
    """Load a model for training."""
    model = load_dense(source, torch.float32).to(memory_format=torch.channels_last)
    if getattr(model, "_supports_sdpa", False):  # the backward pass of PyTorch's fused attention is slow on the CPU
        model.set_attn_implementation("eager")
    return model


def original_ms(source: ModelFolder) -> float:
    """Measure the milliseconds of a model for one image, as the depth step does."""
    model = load_dense(source, torch.float32)
    return milliseconds({"original": model}, find_domain(source).example(source)[0])["original"]


def _write(
    task: DepthTask, source: ModelFolder, section: dict[str, Any], replaced: dict[str, nn.Module], recipe: Recipe,
    folder: Path,
) -> None:  # fmt: skip
    """Write the pruned model as a folder. It is an output of Jettison of its own, with a jettison.json.

    section, replaced: what ``run_depth`` returned.
    """
    model, config = task.model, dict(source.raw_config)
    if section["dropped"]:
        dropped = [task.residuals[number] for number in section["pruned"]]
        if kept := _shorten(model, source, dropped):
            config, replaced = kept, {}
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
    copy_companions(source.companions, folder)
    update_manifest(
        folder,
        jettison=version("jettison"),
        teacher={"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()},
        license=source.license,
        recipe=Recipe(recipe.name, (first_step(recipe, "depth"),), recipe.use, recipe.calibration).to_dict(),
        seed=task.seed,
        versions={"torch": version("torch"), "transformers": version("transformers")},
        hashes={"model.safetensors": file_digest(folder / "model.safetensors")},
        blocks=[],
        depth=section,
    )


def _shorten(model: nn.Module, source: ModelFolder, dropped: list[Residual]) -> dict[str, Any] | None:
    """Take dropped blocks out of the list of blocks, in place. Returns the config of the shorter model.

    The result is an ordinary checkpoint. Where the config does not say how many blocks there are in one list, this
    returns None and changes nothing.
    """
    family, blocks = source.anatomy.family, source.anatomy.blocks
    if "*" in family.blocks or source.raw_config.get("num_hidden_layers") != blocks:
        return None
    numbers = {source.anatomy.block_of(residual.block) for residual in dropped}
    for number in sorted(numbers, reverse=True):
        del model.get_submodule(family.blocks)[number]
    stay = [number for number in range(blocks) if number not in numbers]
    return dict(source.raw_config) | shortened(source.raw_config, stay, blocks)
