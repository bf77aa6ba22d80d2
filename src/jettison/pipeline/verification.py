"""``verify``: whether a model folder is whole, without changing anything in it.

- The bytes are those that Jettison recorded, where it wrote the folder.
- Index, config, tensors and tokenizer fit together, and all values are finite.
- The model loads and runs; its packed weights compute what they stand for, where the original is at hand to compare.
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
from jettison.encodings.quantized import empty_parts
from jettison.formats import check
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import read_manifest
from jettison.formats.packed import read_grids
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import load

JOURNAL = "journal.jsonl"


class Untried(JettisonError):
    """A check that cannot be made here, and why: neither a success nor a failure."""


@dataclass
class Folder:
    """What is verified. original: in place of the one that jettison.json names."""

    source: ModelFolder
    original: str | Path | None

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder) if (self.folder / MANIFEST).exists() else {}


def verify(folder: str | Path, *, original: str | Path | None = None) -> dict[str, Any]:
    """Check a folder that Jettison wrote, or any model folder. original: what it was made from, if that has moved.

    Returns ``ok``, and ``checks``: of each its name (``check``), ``ok`` (None where it could not be made) and what was
    ``found``, in words. Nothing is written. Raises UsageError for what is no model folder.
    """
    looked = Folder(ModelFolder(folder), original)
    checks = []
    with bar("verify", len(CHECKS)) as progress:
        for name, look in CHECKS.items():
            ok, found = _try(look, looked)
            checks.append({"check": name, "ok": ok, "found": found})
            progress.advance(note=name)
            if name == "files" and not ok:  # nothing else can be told
                break
    return {"folder": str(looked.folder), "ok": all(each["ok"] is not False for each in checks), "checks": checks}


def _try(look: Callable[[Folder], str], looked: Folder) -> tuple[bool | None, str]:
    try:
        with guarded("it cannot be read"):
            return True, look(looked)
    except Untried as reason:
        return None, str(reason)
    except JettisonError as error:
        return False, str(error)


def _files(looked: Folder) -> str:
    """The index names shards that are there and hold what it says."""
    if (looked.folder / JOURNAL).exists() and not (looked.folder / MANIFEST).exists():
        raise JettisonError("the run is not finished: call the command that made the folder again")
    checkpoint = looked.source.checkpoint
    size = f"{len(checkpoint.files)} files of weights, {len(list(checkpoint))} tensors"
    if not (looked.folder / INDEX).exists():
        return size
    named = read_json(looked.folder / INDEX).get("weight_map", {})
    wrong = [
        name for name in {*named, *checkpoint} if name not in checkpoint or named.get(name) != _home(checkpoint, name)
    ]
    if wrong:
        raise JettisonError(f"{INDEX} and the shards differ about {len(wrong)} tensors, such as {sorted(wrong)[0]}")
    return size


def _home(checkpoint: Checkpoint, name: str) -> str:
    return checkpoint.home(name).relative_to(checkpoint.folder).as_posix()


def _hashes(looked: Folder) -> str:
    recorded = looked.manifest.get("hashes")
    if not recorded:
        raise Untried(f"none recorded: the folder has no {MANIFEST} with hashes")
    changed = [name for name, meant in recorded.items() if file_digest(inside(looked.folder, name)) != meant]
    if changed:
        raise JettisonError(
            f"{len(changed)} of {len(recorded)} files are not as they were written: {', '.join(changed)}"
        )
    return f"{len(recorded)} files are as they were written"


def _shapes(looked: Folder) -> str:
    """Every tensor that the config asks for is there, in its shape."""
    source, grids = looked.source, read_grids(looked.source)
    expected = {name: tuple(each.shape) for name, each in source.skeleton.named_parameters()}
    for linear in source.anatomy:
        if linear.name in grids:
            parts = empty_parts(linear.rows, linear.columns, grids[linear.name])
            expected.pop(f"{linear.name}.weight", None)
            expected |= {f"{linear.name}.{name}": tuple(part.shape) for name, part in parts.items()}
    for name, meant in expected.items():
        tensor, expert, _ = source.locate(name)
        shape = source.checkpoint.shape(tensor) if expert is None else tuple(source.read(name).shape)
        if shape != meant:
            raise JettisonError(f"{tensor} has shape {shape}, the config asks for {meant}")
    return f"all {len(expected)} that the config asks for, in their shapes"


def _finite(looked: Folder) -> str:
    """Of the shards and of the adapter."""
    count = 0
    for checkpoint in _checkpoints(looked):
        for file in checkpoint.files:
            for name in checkpoint:
                if checkpoint.home(name) == file:
                    value = checkpoint.read(name)
                    if value.is_floating_point() and not (good := torch.isfinite(value)).all():
                        raise JettisonError(
                            f"{name} of {file.name} has {int((~good).sum())} values that are NaN or infinite"
                        )
                    count += value.numel()
            checkpoint.release()
    return f"all of {count:,}"


def _checkpoints(looked: Folder) -> list[Checkpoint]:
    adapter = looked.folder / ADAPTER / "adapter_model.safetensors"
    return [looked.source.checkpoint, *([Checkpoint(adapter.parent, [adapter])] if adapter.parent.is_dir() else [])]


def _reader(looked: Folder) -> str:
    """What turns data into inputs: the tokenizer, or the image processor."""
    return find_domain(looked.source).check_reader(looked.source)


def _runs(looked: Folder) -> str:
    """Loads, adapter included, and says something finite about a few inputs."""
    try:
        require_memory(looked.source.checkpoint.tensor_bytes, "loading it")
    except JettisonError as error:
        raise Untried(str(error)) from None
    loaded = load(looked.folder, cache=False)
    inputs, what = find_domain(looked.source).example(looked.source)
    if not torch.isfinite(loaded.logits(inputs)).all():
        raise JettisonError("its outputs are not finite")
    adapter = ", with its adapter" if (looked.folder / ADAPTER).is_dir() else ""
    return f"{what}, finite outputs{adapter}"


def _self_check(looked: Folder) -> str:
    """The first packed block against the original's, which carries the same weights unpacked."""
    grids = read_grids(looked.source)
    if not grids:
        raise Untried("nothing is packed")
    original = _original(looked)
    found = check.check_block(original, looked.folder, [linear for linear in original.anatomy if linear.name in grids])
    if found is None:
        raise Untried("no block is packed")
    return f"block {found['index']} differs by {found['difference']:.1g} of its largest output"


def _original(looked: Folder) -> ModelFolder:
    recorded = looked.manifest.get("teacher", {})
    place = looked.original or recorded.get("folder")
    if place is None:
        raise Untried("the folder does not name its original: give it with --original")
    try:
        original = ModelFolder(place)
    except UsageError as error:
        if looked.original:
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
