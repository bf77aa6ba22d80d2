"""``recover`` on a folder: its training data, the training, and the changes in the checkpoint."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from jettison.core.errors import JettisonError, UsageError
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_number
from jettison.core.progress import logged, say
from jettison.core.sealed import read_sealed
from jettison.domains.domain import find_domain
from jettison.encodings.grid import Grid
from jettison.formats.dequantized import open_source
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.formats.packed import load_packed, read_grids
from jettison.graph.anatomy import Linear
from jettison.graph.dense import load_dense, require_memory, training_dtype
from jettison.graph.folder import ModelFolder
from jettison.pipeline.trained import (
    JOURNAL,
    ORIGINALS,
    STATE,
    WORK,
    check_shards,
    keep_originals,
    result_hashes,
    scale_of,
    shard_hashes,
    store,
    store_adapter,
    undo,
)
from jettison.recipe.recipe import Recipe, Step, load_recipe, with_images, with_windows
from jettison.recipe.registry import find
from jettison.training.pupil import Pupil

SAVE_EVERY = 60.0


@logged("folder")
def recover(
    folder: str | Path,
    *,
    changes: Iterable[str] = (),
    teacher: str | Path | None = None,
    restart: bool = False,
    save_every: float = SAVE_EVERY,
    images: str | Path | None = None,
) -> dict[str, Any]:
    """Train a compressed model so that its outputs come close to those of its teacher, the original.

    The folder's recipe says what is trained: LoRA adapters, scales, weights. The result is ``adapter/`` (PEFT), new
    scales or new weights in the same folder. A run that was killed continues when ``recover`` is called again.
    ``accelerate launch -m jettison recover DIR`` spreads the training over processes.

    changes: of the recover step, ``recover.option=value`` strings.
    teacher: the folder of the original, if it has moved.
    restart: drop an earlier recovery and put the first scales and weights back.
    save_every: seconds between saves of the training state.
    images: what an image classifier is trained on, by default the calibration images.

    Returns jettison.json with its section ``recovery``.
    Raises UsageError for a folder that Jettison did not compress or that holds another recovery, JettisonError if
    teacher and student do not fit in memory.
    """
    check_number("save_every", save_every, 0)
    folder, state = Path(folder), PartialState(cpu=not torch.cuda.is_available())
    recipe = with_images(load_recipe(read_manifest(folder)["recipe"]), images)
    step = recovery_step(recipe, changes, ModelFolder(folder).positions)
    options = step.options
    if options["batch"] % state.num_processes:
        raise UsageError(f"batch {options['batch']} does not divide among {state.num_processes} processes")
    with ExitStack() as locks:
        _on_main(state, lambda: locks.enter_context(locked(folder)))
        if restart:
            _on_main(state, lambda: undo(folder))
        return _recover(folder, recipe, step, teacher, save_every, state)


def _recover(
    folder: Path, recipe: Recipe, step: Step, teacher: str | Path | None, save_every: float, state: PartialState
) -> dict[str, Any]:
    """Run or continue the recovery of a locked folder; every process calls it, the main process writes."""
    manifest, options = read_manifest(folder), step.options
    first = (manifest.get("recovery") or manifest)["hashes"]  # hashes of the shards before any recovery
    _on_main(state, lambda: check_shards(folder, first))
    original = _open_teacher(folder, manifest, teacher)
    work, source = folder / WORK, ModelFolder(folder)
    domain = find_domain(source)
    domain.check_recipe(original, replace(recipe, steps=(step,)), calibrated=False)
    grids = read_grids(source)
    linears = [linear for linear in source.anatomy if step.where.matches(linear.roles, linear.block)]
    linears = [linear for linear in linears if "embed" not in linear.roles]
    adapted = [linear for linear in linears if linear.layout != "conv2d"]
    shared = {source.anatomy.linears[0], source.anatomy.head} if source.anatomy.tied else set()  # scales stay
    quantized = [linear for linear in source.anatomy if linear.name in grids and linear not in shared]
    quantized = [linear for linear in quantized if "embed" not in linear.roles]
    dense = _dense_names(source, linears, grids) if "weights" in options["train"] else []
    empty = {"lora": not adapted, "scales": not quantized, "weights": not dense}
    if not linears or any(empty.get(kind) for kind in options["train"]):
        raise UsageError(f"«{step}» fits no linear of {folder} for {', '.join(options['train'])}")
    run = {"kind": "recover", "step": _as_dict(step), "checkpoint": first}
    run |= {"data": domain.training_digests(recipe, step)}
    journal = _on_main(state, lambda: Journal(work / JOURNAL, run))  # None in all but the main process
    finished = [journal is not None and _is_finished(folder, journal)]
    if broadcast_object_list(finished)[0]:
        if journal and manifest["hashes"] != first and read_sealed(work / ORIGINALS) is None:
            say(f"note: {work / ORIGINALS} is missing or damaged: the recovery is whole, but --restart cannot undo it")
        return manifest
    if journal:
        _require_losses(work / STATE, journal)
    if journal and {"scales", "weights"} & set(options["train"]):
        names = [scale_of(source, linear.name) for linear in quantized if "scales" in options["train"]]
        names += [f"{name}.weight" for name in dense]
        keep_originals(source, work, names, first)
    state.wait_for_everyone()
    process = state.process_index, state.num_processes
    inputs = domain.training(original, recipe, step, process, state.wait_for_everyone)
    dtype = training_dtype()  # of the teacher; the student is float32, 4 bytes per parameter
    require_memory(original.anatomy.parameters * (dtype.itemsize + 4), f"recovering {original.name}")
    pupil = Pupil(
        student=load_packed(source, torch.float32),
        teacher=load_dense(original, dtype),
        linears=adapted,
        quantized=quantized,
        dense=[linear for linear in linears if linear.name in dense],
        inputs=inputs,
        lesson=domain.lesson,
        state=work / STATE,
        save_every=save_every,
        record=lambda at, loss: journal.add(step=at, loss=round(loss, 6)) if journal else None,
    )
    trained = find("recover", step.method).function(pupil, **options)
    if journal:
        store(folder, source, trained, options, grids, journal)
        losses = {entry["step"]: entry["loss"] for entry in journal.entries if "loss" in entry}
        update_manifest(
            folder,
            recovery=_as_dict(step) | {"loss": [losses[at] for at in sorted(losses)], "hashes": first},
            hashes=shard_hashes(folder),
        )
        store_adapter(folder, source, trained, options)
        journal.add(finished=True, hashes=result_hashes(folder))
    state.wait_for_everyone()
    return read_manifest(folder)


def _on_main(state: PartialState, work: Callable[[], Any]) -> Any:
    """Run ``work`` in the main process only; return its result, None in other processes.

    If ``work`` raises JettisonError, all processes raise it, so that none waits for the main process.
    """
    result, failure = None, [None]
    if state.is_main_process:
        try:
            result = work()
        except JettisonError as error:
            failure = [error]
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0]:
        raise failure[0]
    return result


def _is_finished(folder: Path, journal: Journal) -> bool:
    """Return whether the recovery is finished and all files that it wrote are unchanged."""
    entry = journal.last(finished=True)
    return entry is not None and entry["hashes"] == result_hashes(folder)


def _require_losses(state: Path, journal: Journal) -> None:
    """Drop the training state if the journal has lost the loss of a step: the result contains all losses."""
    stored = read_sealed(state)
    steps = {entry["step"] for entry in journal.entries if "loss" in entry}
    if stored and not set(range(int(stored[1]["step"]))) <= steps:
        say(f"note: {journal.path} has lost the losses of some steps, so training starts again")
        state.unlink()


def _open_teacher(folder: Path, manifest: dict[str, Any], teacher: str | Path | None) -> ModelFolder:
    """Open the original. Raises UsageError if it is missing, or is not the model that ``folder`` was made from."""
    try:
        original = open_source(teacher or manifest["teacher"]["folder"])
    except UsageError as error:
        raise UsageError(f"{error}; if the original of {folder} has moved, say where it is with --teacher") from None
    if original.fingerprint() != manifest["teacher"]["fingerprint"]:
        raise UsageError(f"{original.name} is not the model {manifest['teacher']['name']} that {folder} was made from")
    return original


def recovery_step(recipe: Recipe, changes: Iterable[str] = (), positions: int | None = None) -> Step:
    """Return the recipe's recover step with changes applied; a step with all defaults if the recipe has none.

    changes: ``recover.option=value`` strings.
    positions: how many positions the model has; windows of text are cut to that length.
    Raises UsageError for a change of another step, and for a recipe with several recover steps.
    """
    changes = list(changes)
    for change in changes:
        if not change.startswith("recover."):
            raise UsageError(f"recovery can only change recover.option=value; this is {change!r}")
    if not recipe.of("recover"):
        recipe = load_recipe(recipe.to_dict() | {"steps": [*recipe.to_dict()["steps"], {"recover": {}}]})
    if len(recipe.of("recover")) > 1:
        raise UsageError("a recipe has at most one recover step; this one has several")
    return load_recipe(with_windows(recipe, positions), changes).of("recover")[0]


def _dense_names(source: ModelFolder, linears: list[Linear], grids: dict[str, Grid]) -> list[str]:
    """Return the names of linears whose weight is a tensor of its own: neither packed, nor one expert of a stacked
    tensor, nor a tied head."""
    own = lambda linear: linear.name not in grids and source.locate(f"{linear.name}.weight")[1] is None
    tied = lambda linear: source.anatomy.tied and "head" in linear.roles
    return [linear.name for linear in linears if own(linear) and not tied(linear)]


def _as_dict(step: Step) -> dict[str, Any]:
    where = step.where.to_dict()
    return {"method": step.method} | step.options | ({"where": where} if where else {})
