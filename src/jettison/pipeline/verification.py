"""``verify``: check whether a model folder is complete and correct, without changing anything in it.

- The files have the hashes that Jettison recorded, if it wrote the folder.
- Index, config, tensors and tokenizer fit together, and all values are finite.
- The model loads and runs.
- If the original is available: a block computes the same from its packed weights as from the same weights unpacked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.files import file_digest, inside
from jettison.core.progress import bar
from jettison.domains.domain import find_domain
from jettison.formats import check
from jettison.formats.dequantized import open_source
from jettison.formats.format import format_of
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import read_manifest
from jettison.formats.packed import read_grids, read_reordered
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import load

JOURNAL = "journal.jsonl"


class Untried(JettisonError):
    """A check cannot be made here, for the reason in the message: neither a success nor a failure."""


@dataclass
class Folder:
    """The folder that is verified.

    original: folder of the original, in place of the one that jettison.json names.
    """

    source: ModelFolder
    original: str | Path | None

    @property
    def folder(self) -> Path:
        """Return the path of the folder."""
        return self.source.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """Read jettison.json; return an empty dict if there is none."""
        return read_manifest(self.folder) if (self.folder / MANIFEST).exists() else {}


def verify(folder: str | Path, *, original: str | Path | None = None) -> dict[str, Any]:
    """Check a folder that Jettison wrote, or any model folder. Nothing is written.

    original: folder of the model that it was made from, if that has moved.

    Returns ``folder``, ``ok`` (no check failed), and ``checks``, each with its name (``check``), ``ok`` (None if the
    check could not be made) and the finding in words (``found``). Raises UsageError if ``folder`` is no model folder.
    """
    target = Folder(ModelFolder(folder), original)
    checks = []
    with bar("verify", len(CHECKS)) as progress:
        for name, function in CHECKS.items():
            ok, finding = _run_check(function, target)
            checks.append({"check": name, "ok": ok, "found": finding})
            progress.advance(note=name)
            if name == "files" and not ok:  # the other checks need the files
                break
    return {"folder": str(target.folder), "ok": all(result["ok"] is not False for result in checks), "checks": checks}


def _run_check(function: Callable[[Folder], str], target: Folder) -> tuple[bool | None, str]:
    """Make one check; return success (None if it cannot be made) and the finding in words."""
    try:
        with guarded("it cannot be read"):
            return True, function(target)
    except Untried as reason:
        return None, str(reason)
    except JettisonError as error:
        return False, str(error)


def _files(target: Folder) -> str:
    """Check that the run is finished, and that the index and the shards agree about every tensor."""
    if (target.folder / JOURNAL).exists() and not (target.folder / MANIFEST).exists():
        raise JettisonError("the run is not finished: call the command that made the folder again")
    checkpoint = target.source.checkpoint
    size = f"{len(checkpoint.files)} files of weights, {len(list(checkpoint))} tensors"
    file = checkpoint.folder / checkpoint.index
    if not file.exists():
        return size
    index = read_json(file).get("weight_map", {})
    wrong = [
        name for name in {*index, *checkpoint} if name not in checkpoint or index.get(name) != _home(checkpoint, name)
    ]
    if wrong:
        raise JettisonError(f"{file.name} and the shards differ about {len(wrong)} tensors, such as {sorted(wrong)[0]}")
    return size


def _home(checkpoint: Checkpoint, name: str) -> str:
    """Return the shard that holds a tensor, as the index writes it."""
    return checkpoint.home(name).relative_to(checkpoint.folder).as_posix()


def _hashes(target: Folder) -> str:
    """Check that the files have the hashes in jettison.json."""
    recorded = target.manifest.get("hashes")
    if not recorded:
        raise Untried(f"none recorded: the folder has no {MANIFEST} with hashes")
    changed = [name for name, digest in recorded.items() if file_digest(inside(target.folder, name)) != digest]
    if changed:
        raise JettisonError(
            f"{len(changed)} of {len(recorded)} files are not as they were written: {', '.join(changed)}"
        )
    return f"{len(recorded)} files are as they were written"


def _shapes(target: Folder) -> str:
    """Check that every tensor that the config asks for exists and has the right shape."""
    source, grids = target.source, read_grids(target.source) | read_reordered(target.source)
    expected = {name: tuple(parameter.shape) for name, parameter in source.skeleton.named_parameters()}
    for linear in source.anatomy:
        if linear.name in grids:
            parts = format_of(source).stored(linear.rows, linear.columns, grids[linear.name])
            expected.pop(f"{linear.name}.weight", None)
            expected |= {f"{linear.name}.{name}": tuple(part.shape) for name, part in parts.items()}
    for name, expected_shape in expected.items():
        tensor, expert, _ = source.locate(name)
        shape = source.checkpoint.shape(tensor) if expert is None else tuple(source.read(name).shape)
        if shape != expected_shape:
            raise JettisonError(f"{tensor} has shape {shape}, the config asks for {expected_shape}")
    return f"all {len(expected)} that the config asks for, in their shapes"


def _finite(target: Folder) -> str:
    """Check that all values of the shards and of the adapter are finite."""
    count = 0
    for checkpoint in _checkpoints(target):
        for file in checkpoint.files:
            for name in checkpoint:
                if checkpoint.home(name) == file:
                    value = checkpoint.read(name)
                    if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
                        raise JettisonError(
                            f"{name} of {file.name} has {int((~finite).sum())} values that are NaN or infinite"
                        )
                    count += value.numel()
            checkpoint.release()
    return f"all of {count:,}"


def _checkpoints(target: Folder) -> list[Checkpoint]:
    """Return the checkpoint of the model and, if there is one, that of its LoRA adapter."""
    adapter = target.folder / ADAPTER / "adapter_model.safetensors"
    return [target.source.checkpoint, *([Checkpoint(adapter.parent, [adapter])] if adapter.parent.is_dir() else [])]


def _reader(target: Folder) -> str:
    """Check the tokenizer or the image processor, which turns data into inputs."""
    return find_domain(target.source).check_reader(target.source)


def _runs(target: Folder) -> str:
    """Check that the model loads, with its adapter, and gives finite outputs for a few inputs."""
    try:
        require_memory(target.source.checkpoint.tensor_bytes, "loading it")
    except JettisonError as error:
        raise Untried(str(error)) from None
    loaded = load(target.folder, cache=False)
    inputs, what = find_domain(target.source).example(target.source)
    if not torch.isfinite(loaded.logits(inputs)).all():
        raise JettisonError("its outputs are not finite")
    adapter = ", with its adapter" if (target.folder / ADAPTER).is_dir() else ""
    return f"{what}, finite outputs{adapter}"


def _self_check(target: Folder) -> str:
    """Compare the first packed block with the original's block carrying the same weights unpacked."""
    grids = read_grids(target.source)
    if not grids:
        raise Untried("nothing is packed")
    original = _original(target)
    packed = [linear for linear in original.anatomy if linear.name in grids]
    block = check.check_block(original, target.folder, packed, find_domain(original).example(original)[0])
    if block is None:
        raise Untried("no block is packed")
    return f"block {block['index']} differs by {block['difference']:.1g} of its largest output"


def _original(target: Folder) -> ModelFolder:
    """Open the original. Raises Untried if it is unknown, not at its place, or has changed."""
    recorded = target.manifest.get("teacher", {})
    place = target.original or recorded.get("folder")
    if place is None:
        raise Untried("the folder does not name its original: give it with --original")
    try:
        original = open_source(place)
    except UsageError as error:
        if target.original:
            raise
        raise Untried(f"the original is not at {place} any more: give it with --original ({error})") from None
    if recorded and original.fingerprint() != recorded.get("fingerprint"):
        raise Untried(f"{place} is not the original {recorded.get('name')} any more")
    return original


CHECKS = {
    "files": _files,
    "recorded hashes": _hashes,
    "tensors": _shapes,
    "finite values": _finite,
    "reader": _reader,
    "runs": _runs,
    "self-check": _self_check,
}
