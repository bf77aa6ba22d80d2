"""Write a quantized language model as a checkpoint of another format: shard by shard, resumable, whole or absent.

- Codes, scales and zero points are those of the source. Each shard is read back and compared when it is written.
- A folder is written under a hidden name beside its own, with a journal, and renamed when it is complete. A killed
  export continues there.
- A recovered LoRA adapter is kept apart, merged into weights that are then rounded to their grids again, or folded into
  the scales (``adapted``).
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import file_digest, size_of, sync_folder
from jettison.core.journal import Journal
from jettison.core.progress import bar
from jettison.core.tensors import write_tensors
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats import check
from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.format import find_format
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.formats.peft import LoRA, copy_adapter, read_adapters
from jettison.formats.transformers_types import not_in_transformers
from jettison.formats.writer import Stored, Writer
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import as_matrix
from jettison.graph.skeleton import KINDS
from jettison.recipe.registry import find

JOURNAL = "journal.jsonl"
PLAIN = "transformers"  # the checkpoint without packed weights
ADAPTERS = ("keep", "merge", "fold")
PACKED = ("weight_packed", "qweight")  # names of the tensors of packed matrices


def open_export(model: str | Path) -> ModelFolder:
    """Open a model to export. Its LoRA adapter is left out; ``has_adapter`` tells whether there is one."""
    source = ModelFolder(model)
    if source.quantization and source.anatomy.family.domain == "text":
        return DequantizedFolder(model, without_adapter=True)
    return source


def has_adapter(source: ModelFolder) -> bool:
    """Return whether the folder of a model holds a LoRA adapter."""
    return (source.folder / ADAPTER).is_dir()


def refuses_folder(source: ModelFolder, name: str, adapter: str) -> list[str]:
    """List the reasons why a model is not written in the format ``name``, one line each.

    adapter: what becomes of a LoRA adapter; one of ``ADAPTERS``.
    """
    if reason := not_text(source, name):
        return [reason]
    if source.replaced or source.library != "transformers":
        return [f"{name}: {source.name} has modules of Jettison's own, which only jettison.load rebuilds"]
    lost = [tensor for tensor in source.checkpoint if tensor.rpartition(".")[2] in PACKED]
    if lost:  # a ``DequantizedFolder`` hides those of the model
        return [f"{name}: {source.name} has packed matrices of blocks that the model does not have, such as {lost[0]}"]
    if name == PLAIN:
        return _refuses_plain(source, adapter)
    grids = exported_grids(source, name)
    if not grids:
        return [f"{name}: {source.name} has no quantized matrices: compress it first"]
    return find_format(name).refuses(source.anatomy, grids)


def not_text(source: ModelFolder, name: str) -> str:
    """Return why a model is not written in the format ``name`` if it is no language model; else ""."""
    if not source.layout.part and source.anatomy.family.domain == "text":
        return ""
    images = KINDS.get(source.anatomy.family.domain, "model of images")
    kind = "diffusion pipeline" if source.layout.part else images
    return f"{name}: only causal language models are written in this format; {source.name} is none ({kind})"


def _refuses_plain(source: ModelFolder, adapter: str) -> list[str]:
    reasons = []
    if has_adapter(source) and adapter == "fold":
        reasons.append(f"{PLAIN}: full-precision weights have no scales to fold the LoRA adapter into: merge it")
    experts = source.anatomy.family.experts
    if source.quantization and experts and experts["stored"] == "stacked":
        kind = source.anatomy.family.name
        reasons.append(f"{PLAIN}: {kind} stores its experts in one tensor, and those of {source.name} lie apart")
    return reasons


def exported_grids(source: ModelFolder, name: str) -> dict[str, Grid]:
    """Return linear name -> grid of the matrices that are packed in the format ``name``.

    A head and an embedding that are one matrix stay in full precision.
    """
    if name == PLAIN or not isinstance(source, DequantizedFolder):
        return {}
    format, tied = find_format(name), source.anatomy.tied
    ends = lambda linear: tied and {"head", "embed"} & set(linear.roles)
    packs = lambda linear: linear.name in source.grids and format.packs(linear) and not ends(linear)
    return {linear.name: source.grids[linear.name] for linear in source.anatomy if packs(linear)}


def write_folder(source: ModelFolder, name: str, out: Path, adapter: str) -> dict[str, Any]:
    """Write a model in the format ``name`` into the folder ``out``, or continue an export that was killed.

    The caller holds the lock of the folder above.

    source: of ``open_export``; ``refuses_folder`` has no reasons against it.
    adapter: what becomes of its LoRA adapter, if it has one.
    Returns path, bytes (of all files), stored_dense (quantized matrices that the format stores dense), notes (what
    transformers cannot load), and adapter (None without one).
    Raises UsageError if ``out`` holds anything but this export; JettisonError if a shard reads back differently.
    """
    grids, adapters = exported_grids(source, name), _adapters(source)
    adapter = adapter if adapters else None
    work = out if out.exists() and os.listdir(out) else out.with_name(f".{out.name}.unfinished")
    journal = Journal(work / JOURNAL, _identity(source, name, adapter))
    writer = Writer(source, name if name != PLAIN else "compressed-tensors")  # which packs nothing here
    applied = {} if adapter == "keep" else adapters
    blocks, entries = source.anatomy.blocks, []
    with bar(f"export {name}", blocks + 1) as progress:
        for unit in range(blocks + 1):
            entry = journal.last(unit=unit)
            if entry is None or not _is_whole(work, entry):
                entry = _write_unit(writer, grids, applied, adapter, work, unit)
                journal.add(unit=unit, **entry)
            entries.append(entry)
            progress.advance()
    if work != out or not (work / MANIFEST).exists():
        writer.finish(work, [entry["file"] for entry in entries], grids, untie=False)
        _record(writer, work, name, grids, entries, adapter)
    if work != out:
        os.replace(work, out)
        sync_folder(out.parent)
    dense = [linear.name for linear in source.anatomy if linear.name in _grids_of(source) and linear.name not in grids]
    return {
        "path": os.fspath(out),
        "bytes": size_of(path for path in out.rglob("*") if path.name != JOURNAL),
        "stored_dense": dense if grids else [],
        "notes": read_manifest(out)["not_in_transformers"],
        "adapter": adapter,
    }


def _grids_of(source: ModelFolder) -> Mapping[str, Grid]:
    return source.grids if isinstance(source, DequantizedFolder) else {}


def _adapters(source: ModelFolder) -> dict[str, LoRA]:
    """Return linear name -> LoRA adapter. Raises JettisonError for one that does not fit the model."""
    adapters, linears = {}, {linear.name: linear for linear in source.anatomy}
    for lora in read_adapters(source.folder, linears) if has_adapter(source) else ():
        linear, shapes = linears[lora.name], (tuple(lora.a.shape), tuple(lora.b.shape))
        if shapes != ((lora.rank, linear.columns), (linear.rows, lora.rank)):
            raise JettisonError(
                f"{source.folder / ADAPTER}: the LoRA adapter of {lora.name} has matrices {shapes[0]} and {shapes[1]}, "
                "which do not fit its linear"
            )
        adapters[lora.name] = lora
    return adapters


def _identity(source: ModelFolder, name: str, adapter: str | None) -> dict[str, Any]:
    """Return everything that the written bytes depend on, for the journal's first line."""
    run = {"kind": "export", "model": source.identity(), "format": name, "adapter": adapter}
    if adapter:
        run["adapter files"] = {path.name: file_digest(path) for path in sorted((source.folder / ADAPTER).iterdir())}
    return run | {"versions": {"jettison": version("jettison"), "torch": torch.__version__}}


def _is_whole(work: Path, entry: Mapping[str, Any]) -> bool:
    file = work / entry["file"]
    return file.is_file() and file_digest(file) == entry["sha256"]


def _write_unit(
    writer: Writer,
    grids: Mapping[str, Grid],
    adapters: Mapping[str, LoRA],
    adapter: str | None,
    work: Path,
    unit: int,
) -> dict[str, Any]:
    """Write the shard of a block, the last one for what is outside the blocks, and check it. Returns its entry."""
    source, blocks = writer.source, writer.source.anatomy.blocks
    block = unit if unit < blocks else None
    weights: dict[Linear, Stored] = {}
    for linear in source.anatomy.of_block(block):
        weight = source.read_packed(linear.name) if linear.name in grids else None
        if linear.name in adapters:
            dense = None if weight is not None else as_matrix(source.read(f"{linear.name}.weight"), linear.layout)
            weight = adapted(weight if dense is None else dense.float(), _product(adapters[linear.name]), adapter)
        if weight is not None:
            weights[linear] = weight
    file = work / source.layout.shard(unit + 1, blocks + 1)
    write_tensors(file, writer.shard_tensors(block, weights, untie=False))
    check.check_shard(writer, file, weights)
    source.checkpoint.release()
    return {"file": file.name, "sha256": file_digest(file)}


def _product(lora: LoRA) -> torch.Tensor:
    """Return what a LoRA adapter adds to its weight: (out, in) float32."""
    return lora.scaling * (lora.b.float() @ lora.a.float())


def adapted(weight: Stored, product: torch.Tensor, how: str) -> Stored:
    """Add the product of a LoRA adapter to a weight.

    weight: packed, or (out, in) float32, to which the product is added without loss.
    product: (out, in) float32.
    how: ``fold``: codes and zero points stay, and each group gets the scale that is nearest to the sum. ``merge``: the
        sum is rounded again; each group keeps its scale and zero point, or gets the scale of ``fold``, or the range
        that the method rtn finds, whichever is nearest. Nearest is by the squared error; scales are rounded to their
        type. Both ways are our reconstruction: no calibration is needed, and little of an adapter fits into scales.
    """
    if not isinstance(weight, QuantizedWeight):
        return weight + product
    grid, wanted = weight.grid, weight.dequantize() + product
    zero = torch.full_like(weight.scale, grid.zero_code) if weight.zero is None else weight.zero
    scale = _nearest_scale(weight, wanted, zero.float())
    if how == "fold":
        return QuantizedWeight(weight.codes, scale, weight.zero, grid)
    again = [QuantizedWeight.nearest(wanted, value.float(), zero.float(), grid) for value in (weight.scale, scale)]
    return _best_groups([*again, find("quantize", "rtn").function(wanted, grid, None)], wanted)


def _nearest_scale(weight: QuantizedWeight, wanted: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Return the scales (rows, groups) with which the codes of a weight are nearest to ``wanted``."""
    grid, one = weight.grid, torch.ones(1)
    codes, zero = grid.grouped(weight.codes).float(), zero.unsqueeze(-1)
    low = grid.decode(codes.clone(), 0 * one, zero)  # (rows, groups, width): what does not grow with the scale
    steps = grid.decode(codes, one, zero) - low
    size = steps.square().sum(-1)  # (rows, groups)
    scale = (steps * (grid.grouped(wanted) - low)).sum(-1) / size
    return torch.where(size > 0, scale, weight.scale.float()).to(grid.scale_dtype)


def _best_groups(candidates: list[QuantizedWeight], wanted: torch.Tensor) -> QuantizedWeight:
    """Return a weight whose groups are those of the candidate that is nearest to ``wanted``, one by one."""
    grid = candidates[0].grid
    errors = [grid.grouped(weight.dequantize() - wanted).square().sum(-1) for weight in candidates]
    best = torch.stack(errors).argmin(0, keepdim=True)  # (1, rows, groups)
    take = lambda parts: torch.stack(parts).gather(0, best).squeeze(0)
    codes = torch.stack([grid.grouped(weight.codes) for weight in candidates])  # (candidates, rows, groups, width)
    codes = codes.gather(0, best.unsqueeze(-1).expand(1, *codes.shape[1:])).squeeze(0)
    zero = None if candidates[0].zero is None else take([weight.zero for weight in candidates])
    return QuantizedWeight(codes.reshape(wanted.shape), take([weight.scale for weight in candidates]), zero, grid)


def _record(
    writer: Writer, work: Path, name: str, grids: Mapping[str, Grid], entries: list[dict[str, Any]], adapter: str | None
) -> None:  # fmt: skip
    """Write jettison.json, and the adapter if it is kept."""
    source = writer.source
    before = read_manifest(source.folder) if (source.folder / MANIFEST).exists() else {}
    itself = {"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()}
    recovery = {"recovery": {"hashes": {}, "train": ["lora"]}} if adapter == "keep" else {}
    update_manifest(
        work,
        jettison=version("jettison"),
        teacher=before.get("teacher", itself),
        license=source.license,
        recipe=before.get("recipe", {"name": "export", "steps": []}),
        blocks=[],
        format=name if grids else "safetensors",
        hashes={entry["file"]: entry["sha256"] for entry in entries},
        not_in_transformers=not_in_transformers(writer.format, source, grids),
        exported={"from": source.name, "to": name, "adapter": adapter},
        **recovery,
    )
    if adapter == "keep":
        copy_adapter(source.folder, work)


def check_place(out: Path) -> None:
    """Raise UsageError if ``out`` is a file, or a folder that holds anything but an export."""
    if out.exists() and (not out.is_dir() or (os.listdir(out) and not (out / JOURNAL).exists())):
        raise UsageError(f"{out} exists already and holds no export of Jettison: choose another folder, or delete it")
