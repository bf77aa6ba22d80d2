"""What a recovery writes into a checkpoint: trained scales, weights and LoRA adapters; and how to undo it.

The first scales and weights are kept beside the checkpoint until the recovery is dropped.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import file_digest, inside
from jettison.core.journal import Journal, read_records
from jettison.core.sealed import read_sealed, write_sealed
from jettison.core.tensors import write_tensors
from jettison.encodings.grid import Grid
from jettison.formats.format import format_of
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.formats.peft import write_adapter
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder

WORK = "recover"  # the folder, inside the checkpoint's
ORIGINALS, STATE, JOURNAL = "originals.safetensors", "state.safetensors", "journal.jsonl"


def written_shards(folder: Path) -> dict[str, set[str]]:
    """Return shard's name -> the SHA-256 of all versions that the recovery of ``folder`` wrote or began to write."""
    path, digests = folder / WORK / JOURNAL, {}
    for record in read_records(path)[0] if path.is_file() else []:
        if record and "stored" in record:
            digests.setdefault(record["stored"], set()).add(record["sha256"])
    return digests


def check_shards(folder: Path, first: dict[str, str]) -> None:
    """Raise JettisonError if a shard is neither as it was before the recovery nor as the recovery wrote it."""
    recovered = written_shards(folder)
    for name, expected in first.items():
        digest = file_digest(inside(folder, name)) if (folder / name).is_file() else None
        if digest != expected and digest not in recovered.get(name, ()):
            raise JettisonError(
                f"shard {folder / name} is missing or damaged: run `jettison compress` (or `fit`) again with the same "
                "recipe and folder, which makes it again"
            )


def shard_hashes(folder: Path) -> dict[str, str]:
    """Return shard's name -> SHA-256 of its file."""
    return {file.name: file_digest(file) for file in sorted(folder.glob("model-*.safetensors"))}


def result_hashes(folder: Path) -> dict[str, str]:
    """Return name -> SHA-256 of the shards and of the adapter's files."""
    adapter = [file for file in sorted((folder / ADAPTER).glob("*")) if file.is_file()]
    return shard_hashes(folder) | {f"{ADAPTER}/{file.name}": file_digest(file) for file in adapter}


def keep_originals(source: ModelFolder, work: Path, names: list[str], first: dict[str, str]) -> None:
    """Save the scales and weights that training will change, once.

    If an earlier run has changed them and its training state is lost, put the saved ones back: training starts again.
    Raises JettisonError if they have changed and the saved copy is missing or damaged.
    """
    changed = shard_hashes(source.folder) != first
    kept = read_sealed(work / ORIGINALS)
    if kept is None and changed:
        raise JettisonError(
            f"{work / ORIGINALS} is damaged, and the shards of {source.folder} have changed since: "
            "compress into a new folder"
        )
    if kept is None:
        write_sealed(work / ORIGINALS, {name: source.read(name) for name in names})
    elif changed and read_sealed(work / STATE) is None:
        _replace(source, kept[0])


def scale_of(source: ModelFolder, linear: str) -> str:
    """Return the tensor that holds the scales of a linear. Raises UsageError for a format without such a tensor."""
    if not (scale := format_of(source).SCALE):
        raise UsageError(f"the scales of {source.name} cannot be trained: its format stores them in another form")
    return f"{linear}.{scale}"


def store_adapter(folder: Path, source: ModelFolder, trained: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    """Write the trained LoRA adapters. This comes last, because they record the hash of the final shards."""
    lora = {name: value for name, value in trained.items() if name.endswith((".lora_a", ".lora_b"))}
    if lora:
        alpha = options["alpha"] or 2.0 * options["rank"]
        write_adapter(folder, lora, options["rank"], alpha, [linear.name for linear in source.anatomy])


def store(
    folder: Path,
    source: ModelFolder,
    trained: dict[str, torch.Tensor],
    options: dict[str, Any],
    grids: dict[str, Grid],
    journal: Journal,
) -> None:
    """Write the trained scales and weights into the shards.

    This can be repeated after a kill: new scales are computed from the saved first ones, not from those in the shards.
    Raises JettisonError if the saved ones are damaged, or if training changed zeros that pruning left.
    """
    record = lambda name, sha256: journal.add(stored=name, sha256=sha256)
    first = read_sealed(folder / WORK / ORIGINALS)
    if first is None and set(options["train"]) != {"lora"}:
        raise JettisonError(f"{folder / WORK / ORIGINALS} is missing or damaged: start again with --restart")
    weights = {name: value for name, value in trained.items() if name.endswith(".weight")}
    gains = {name.removesuffix(".gain"): value for name, value in trained.items() if name.endswith(".gain")}
    if gains:
        scales = {}
        for name, gain in gains.items():  # the gain is the logarithm of a factor on the scales
            stored = scale_of(source, name)
            scales[stored] = (first[0][stored].float() * gain.exp()).to(grids[name].scale_dtype)
        _replace(source, scales, record)
    if weights:
        for name, value in weights.items():
            before = first[0][name]
            weights[name] = value.to(before.dtype)
            filled = int(((before == 0) & (weights[name] != 0)).sum())
            if filled and options["masked"]:
                raise JettisonError(f"{name}: {filled} of the zeros that pruning left were trained away")
        _replace(source, weights, record)


def _replace(
    source: ModelFolder,
    tensors: dict[str, torch.Tensor],
    record: Callable[[str, str], None] = lambda name, sha256: None,
) -> None:
    """Replace tensors in the shards that hold them. Every shard is replaced atomically.

    record: called with the shard's name and new SHA-256 just before it is replaced, so that the hash of any shard on
    disk is on record, also after a kill.
    """
    stored = {source.locate(name)[0]: value for name, value in tensors.items()}
    for file in sorted({source.checkpoint.home(name) for name in stored}):
        shard = Checkpoint(source.folder, [file])
        ready = lambda temporary, name=file.name: record(name, file_digest(temporary))
        write_tensors(file, {name: stored.get(name, shard.read(name)) for name in shard}, ready=ready)
    source.checkpoint.release()  # open files still show the old content


def undo(folder: Path) -> None:
    """Remove everything that a recovery wrote, and put the first scales and weights back."""
    work, source, manifest = folder / WORK, ModelFolder(folder), read_manifest(folder)
    kept = read_sealed(work / ORIGINALS)
    changed = (manifest.get("recovery") or manifest)["hashes"] != shard_hashes(folder)
    if kept is None and changed:
        raise JettisonError(f"{work / ORIGINALS} is missing or damaged: compress into a new folder")
    if kept is not None:
        _replace(source, kept[0])
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    results = manifest.get("results", {})
    update_manifest(
        folder,
        recovery=None,
        results={stage: result for stage, result in results.items() if stage != "recovered"},
        hashes=shard_hashes(folder),
    )
