"""``prune_depth``: prune the depth of a module of your own. A folder holds its progress and perhaps the result."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import UsageError, guarded, shown
from jettison.core.files import check_folder, digest
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_seed
from jettison.core.progress import log_in, say
from jettison.domains.vision.training_data import BATCH, divide
from jettison.graph.dense import require_memory
from jettison.graph.described_files import load_described, save_described
from jettison.graph.parts import check_parts, described_blocks
from jettison.graph.residual import Residual
from jettison.pipeline.depth_run import COPIES, check_options, hashes_of, logits_on_device, milliseconds, run_depth
from jettison.pipeline.first_step import JOURNAL, remove_states, undone_if_refused
from jettison.recipe.registry import default_method, find
from jettison.training.depth import DepthTask, Labelled

FOLDER = "depth"  # of ``out``: the journal, and the states of the trainings
Augment = Callable[[torch.Tensor, int], torch.Tensor]


def prune_depth(
    model: nn.Module,
    residuals: Sequence[Residual] | Callable[[nn.Module], Sequence[Residual]],
    pixels: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor | Sequence[int],
    out: str | Path,
    *,
    method: str | None = None,
    seed: int = 0,
    augment: Augment | None = None,
    **options: Any,
) -> nn.Module:
    """Prune the depth of an image classifier of your own: train, and merge blocks into fewer layers.

    model: maps pixels to logits (batch, classes), or to an object with ``logits``. It is not changed.
    residuals: its blocks that may be pruned, in order; or a function that returns them for a model.
    pixels: (images, channels, height, width) float, or a sequence of (channels, height, width). One image in 20 is not
        trained on, but measures the accuracy.
    labels: (images,) classes, from 0.
    out: a folder for the run. A run that was killed continues when this is called again with the same arguments.
    method: of depth pruning, such as ``updp`` or ``drop``.
    augment: a function of pixels (batch, channels, height, width) and a seed, to augmented pixels of the same shape.
    options: of the method, such as blocks, epochs and batch.

    Returns the pruned model, in float32 and eval mode. If all its modules have descriptions (``graph.described``), it
    is written to ``out``, and ``jettison.load`` rebuilds it. Otherwise a note says why not: keep it by ``torch.export``
    or ``formats.onnx_file.write_onnx``.
    Raises UsageError, before any training, for blocks that are not what ``residuals`` says, pixels and labels that do
    not fit the model or each other, options that are not valid, and a folder that holds another run; JettisonError if
    the merged model computes something else.
    """
    check_seed(seed)
    method = method or default_method("depth")
    options = find("depth", method).check(options)
    model, residuals = _copied(model, residuals)
    pixels, labels, places = _checked_data(pixels, labels)
    data = _labelled(pixels, labels, places, augment)
    check_options(options, len(residuals), data.count, "the model")
    _check_model(model, residuals, data, labels)
    require_memory(4 * COPIES * sum(value.numel() for value in model.parameters()), "pruning the depth of the model")
    out = check_folder(out, f"{FOLDER}/{JOURNAL}")
    folder = out / FOLDER
    run = {
        "kind": "depth of a module",
        "model": _digest(model.state_dict().items()),
        "blocks": [residual.path for residual in residuals],
        "step": {"method": method} | options,
        "labels": _digest([("labels", labels)]),
        "images": _digest((place, pixels[place]) for place in range(len(labels))),
        "augmented": augment is not None,
        "seed": seed,
        "versions": {"jettison": version("jettison"), "torch": torch.__version__},
    }
    with locked(out), undone_if_refused(folder), log_in(folder):
        journal = Journal(folder / JOURNAL, run)
        done = journal.last(finished=True)
        if done and done["hashes"] and hashes_of(out) == done["hashes"]:
            remove_states(folder)
            return load_described(out)
        task = DepthTask(
            model=model,
            residuals=residuals,
            data=data,
            logits=logits_on_device,
            measure=lambda models: milliseconds(models, pixels[0][None]),
            folder=folder,
            journal=journal,
            seed=seed,
        )
        section, replaced = run_depth(task, method, options)
        for path, module in replaced.items():
            model.set_submodule(path, module)
        written = _save(model, residuals, out)
        journal.add(finished=True, hashes=hashes_of(out) if written else {}, depth=section)
        if written:
            remove_states(folder)
    return model


def _copied(
    model: nn.Module, residuals: Sequence[Residual] | Callable[[nn.Module], Sequence[Residual]]
) -> tuple[nn.Module, list[Residual]]:
    """Return a copy of the model in float32 on the CPU, and the blocks of this copy."""
    if callable(residuals):
        model = deepcopy(model)
        residuals = list(residuals(model))
    else:
        model, residuals = deepcopy((model, list(residuals)))
    if not residuals:
        raise UsageError("residuals is empty: the model needs a block that may be pruned")
    if wrong := [value for value in residuals if not isinstance(value, Residual)]:
        raise UsageError(f"residuals holds {shown(wrong[0])}; valid: Residual of jettison.graph.residual")
    return model.float().cpu().eval().requires_grad_(True), residuals


def _checked_data(
    pixels: Any, labels: Any
) -> tuple[Sequence[torch.Tensor], torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return pixels, labels (images,) int64, and how the images are divided, see ``divide``."""
    with guarded("labels cannot be used"):
        labels = torch.as_tensor(labels).cpu()
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UsageError(f"labels of shape {tuple(labels.shape)}, {labels.dtype}: (images,) whole numbers are needed")
    with guarded("pixels cannot be used"):
        count = len(pixels)
    if count != len(labels):
        raise UsageError(f"{count} images and {len(labels)} labels: as many of both are needed")
    places = divide(count, "pixels")
    with guarded("pixels cannot be used"):
        first = pixels[0]
    if not torch.is_tensor(first) or first.dim() != 3 or not first.is_floating_point():
        kind = f"{tuple(first.shape)} {first.dtype}" if torch.is_tensor(first) else shown(first)
        raise UsageError(f"pixels[0] is {kind}: (channels, height, width) of a floating-point type is needed")
    return pixels, labels.long(), places


def _labelled(
    pixels: Sequence[torch.Tensor], labels: torch.Tensor, places: tuple[torch.Tensor, ...], augment: Augment | None
) -> Labelled:
    """Return the images as depth pruning trains on them."""
    training, held_out, calibration = places

    def load(indices: torch.Tensor) -> torch.Tensor:
        with guarded("pixels cannot be used"):
            return torch.stack([pixels[index].float().cpu() for index in indices.tolist()])

    def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = training[indices]
        images = load(chosen)
        return images if augment is None else augment(images, step), labels[chosen]

    return Labelled(
        len(training),
        fetch,
        calibration=[load(training[part]) for part in calibration.split(BATCH)],
        validation=[(load(part), labels[part]) for part in held_out.split(BATCH)],
    )


def _check_model(model: nn.Module, residuals: list[Residual], data: Labelled, labels: torch.Tensor) -> None:
    """Run the model once. Raises UsageError if it does not fit its data or the blocks, see ``check_parts``."""
    example, logits = data.calibration[0][:2], []

    def run() -> None:
        with guarded("the model does not run on the pixels"):
            logits.append(logits_on_device(model, example))

    check_parts(model, residuals, run)
    if not torch.is_tensor(logits[0]) or logits[0].dim() != 2:
        raise UsageError(f"the model returns {shown(logits[0])}: logits (batch, classes) are needed")
    classes = logits[0].shape[1]
    if wrong := labels[(labels < 0) | (labels >= classes)].tolist():
        raise UsageError(f"labels has {wrong[0]}: the model has classes 0 to {classes - 1}")


def _save(model: nn.Module, residuals: list[Residual], out: Path) -> bool:
    """Write the pruned model. Returns False, and says why, if it has a module without a description."""
    try:
        with described_blocks(model, residuals):
            save_described(model, out)
        return True
    except UsageError as error:
        say(
            "note: the pruned model is returned but not written; keep it by torch.export or by write_onnx of "
            f"jettison.formats.onnx_file. {error}"
        )
        return False


def _digest(tensors: Iterable[tuple[object, torch.Tensor]]) -> str:
    """Return 16 hex digits of the names and the content of some tensors."""
    return digest(*(digest(str(name), *_content(value)) for name, value in tensors))


def _content(value: torch.Tensor) -> tuple[str, list[int], bytes]:
    value = value.detach().cpu().contiguous()
    return str(value.dtype), list(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()
