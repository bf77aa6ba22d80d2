"""The block loop: stream a block, measure what flows into it, apply the recipe's methods, write its shard, let go.

At no time is more than one block in memory. A journal line after every block lets a killed run continue and write the
same bytes.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jettison import registry
from jettison.calibrate import Stats, token_windows, watch
from jettison.errors import JettisonError, UsageError
from jettison.files import file_digest, write_tensors
from jettison.formats import check, compressed_tensors, writer
from jettison.formats.engines import Engine, find_engine, illegal
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.grid import AT_ONCE, Grid, QuantizedWeight
from jettison.journal import Journal
from jettison.models import Activations, Linear, ModelFolder, Walk
from jettison.models.checkpoint import Checkpoint
from jettison.progress import bar, say
from jettison.recipe import Recipe, Step, load_recipe
from jettison.recover import synthesize

JOURNAL, SPILL = "journal.jsonl", "activations"


@dataclass(frozen=True)
class Job:
    """One linear, the step that acts on it, and its grid (with the type in which its scales are stored)."""

    linear: Linear
    step: Step
    grid: Grid


def compress(
    model: str | Path,
    recipe: str | Path | Mapping | Recipe,
    out: str | Path,
    *,
    changes: Iterable[str] = (),
    seed: int = 0,
    spill: bool = False,
    engine: str | None = None,
) -> dict[str, Any]:
    """Compress a model by a recipe into folder ``out``, a Hugging Face checkpoint. Returns its jettison.json.

    model: ``scribe``, a local folder, or a hub id. recipe: a preset's name, a YAML file, a mapping or a Recipe, with
    ``changes`` of the form ``verb.option=value``. spill: keep the activations of the calibration text in files of
    ``out``, not in memory. engine: refuse at once what it would not load. A run that was killed continues when it is
    called again.

    Raises UsageError for a recipe that does not fit the model or the engine, a model that is already quantized, or a
    folder that holds another run; JettisonError for damaged or non-finite weights, or a full disk.
    """
    source, recipe, out = ModelFolder(model), load_recipe(recipe, changes), Path(out)
    if source.quantization:
        method = source.quantization.get("quant_method")
        raise UsageError(f"{source.name} is already quantized ({method}): start from the original")
    jobs = assign(source, recipe, engine)
    needs = frozenset().union(*(registry.find("quantize", job.step.method).needs for job in jobs))
    if not (out / MANIFEST).exists():
        _check_disk(source, out)
    journal = Journal(
        out / JOURNAL,
        {
            "kind": "compress",
            "model": source.fingerprint(),
            "steps": recipe.to_dict()["steps"],
            "calibration": recipe.calibration if needs else None,
            "seed": seed,
            "versions": {"jettison": version("jettison"), "torch": torch.__version__},
        },
    )
    if not journal.last(finished=True):
        scratch, walk = out / SPILL, None
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed run: its states are computed again
        if needs:
            tokens = calibration_tokens(source, recipe, seed)
            walk = Walk(source, tokens, twice="cross" in needs, spill=scratch if spill else None)
        _run(source, jobs, out, journal, walk)
        shutil.rmtree(scratch, ignore_errors=True)
        _finish(source, recipe, jobs, out, journal, seed)
        journal.add(finished=True)
    for note in compressed_tensors.problems(source.anatomy, _packed_grids(jobs)):
        say(f"note: {note}")
    return read_manifest(out)


def assign(source: ModelFolder, recipe: Recipe, engine: str | None = None) -> list[Job]:
    """The linears that the quantize steps claim.

    Raises UsageError if two steps claim one linear, a step claims nothing, a group size does not divide, parts of
    what engines fuse get different grids, or the engine named would not load the result.
    """
    jobs: dict[Linear, Job] = {}
    for step in recipe.of("quantize"):
        claimed = [linear for linear in source.anatomy if step.where.matches(linear.roles, linear.block)]
        if not claimed:
            present = sorted({role for linear in source.anatomy for role in linear.roles})
            raise UsageError(f"«{step}» fits nothing in {source.name}, whose roles are {', '.join(present)}")
        for linear in claimed:
            if linear in jobs:
                raise UsageError(f"two steps claim {linear.name}: «{jobs[linear].step}» and «{step}»")
            if "embed" in linear.roles and registry.find("quantize", step.method).needs:
                raise UsageError(
                    f"{linear.name} is looked up, not multiplied: rtn and hqq fit it, {step.method} does not"
                )
            try:
                step.grid.groups(linear.columns)
            except UsageError as error:
                raise UsageError(f"{linear.name}: {error}") from None
            jobs[linear] = Job(linear, step, _stored_grid(source, linear, step.grid))
    parts: dict[str, Linear] = {}
    for linear in source.anatomy:
        other = parts.setdefault(linear.fused, linear)
        grids = [str(jobs[part].grid) if part in jobs else "none" for part in (other, linear)]
        if grids[0] != grids[1]:
            raise UsageError(
                f"engines run {linear.fused} as one matrix, so its parts share a grid; "
                f"this recipe gives {other.name} {grids[0]} and {linear.name} {grids[1]}"
            )
    if engine is not None:
        _check_engine(find_engine(engine), source, jobs)
    return list(jobs.values())


def _check_engine(engine: Engine, source: ModelFolder, jobs: Mapping[Linear, Job]) -> None:
    reasons = illegal(engine, source.anatomy, {linear.name: job.grid for linear, job in jobs.items()})
    if engine.no_writer or reasons:
        raise UsageError("; ".join([engine.no_writer or f"{engine.title} would not load this", *reasons]))


def _stored_grid(source: ModelFolder, linear: Linear, grid: Grid) -> Grid:
    """Scales are stored in the model's own 16-bit type; bfloat16 for a float32 model."""
    tensor, _, _ = source.locate(f"{linear.name}.weight")
    return replace(grid, scale_dtype=torch.float16 if source.checkpoint.dtype(tensor) == "F16" else torch.bfloat16)


def calibration_tokens(source: ModelFolder, recipe: Recipe, seed: int) -> torch.Tensor:
    """(samples, length) token ids, as the recipe's ``calibration`` asks."""
    text, samples, length = (recipe.calibration[name] for name in ("text", "samples", "length"))
    if text == "synthetic":
        return synthesize(source, samples=samples, length=length, seed=seed)
    return token_windows(source.tokenizer, text, length, samples)


def _run(source: ModelFolder, jobs: list[Job], out: Path, journal: Journal, walk: Walk | None) -> None:
    blocks = source.anatomy.blocks
    done = sum("unit" in entry for entry in journal.entries)
    with bar("compress", blocks + 1, done) as progress:
        for unit in range(blocks + 1):  # the last unit is what lies outside the blocks
            block = unit if unit < blocks else None
            if entry := journal.last(unit=unit):
                if walk and block is not None:
                    here = [job for job in jobs if job.linear.block == block]
                    _replay(source, here, block, walk, Checkpoint(out, [out / entry["file"]]))
                continue
            entry = compress_unit(source, jobs, block, walk, out)
            journal.add(unit=unit, **entry)
            error = entry["error"]
            progress.advance(note="" if error is None else f"error of block {error:.4f}")


def compress_unit(
    source: ModelFolder, jobs: list[Job], block: int | None, walk: Walk | None, out: Path
) -> dict[str, Any]:
    """Do a block, or with None what lies outside the blocks: quantize it, write its shard, check that. Returns the
    shard's ``file`` and ``sha256``, the ``error`` of the block's output, and a record for each of ``linears``."""
    blocks = source.anatomy.blocks
    here = [job for job in jobs if job.linear.block == block]
    weights, records, error = _quantize_unit(source, here, block, walk)
    file = out / f"model-{(blocks if block is None else block) + 1:05d}-of-{blocks + 1:05d}.safetensors"
    write_tensors(file, writer.shard_tensors(source, block, weights, _unties(source, jobs)))
    check.check_shard(source, file, weights)
    source.checkpoint.release()
    return {"file": file.name, "sha256": file_digest(file), "error": error, "linears": records}


def _quantize_unit(
    source: ModelFolder, jobs: list[Job], block: int | None, walk: Walk | None
) -> tuple[dict[Linear, QuantizedWeight], dict[str, dict], float | None]:
    """Quantized weights, a record per linear, and with a walk the relative squared error of the block's output."""
    if walk is None or block is None:
        stats = {}
        if walk and any("head" in job.linear.roles for job in jobs):
            stats[source.anatomy.head.inputs] = _head_stats(walk, source.anatomy.head)
        return *quantize_linears(source, jobs, stats), None
    with walk.block(block) as module:
        stats, wanted = _measure(walk, module, block, [job.linear for job in jobs])
        weights, records = quantize_linears(source, jobs, stats)
        for linear, weight in weights.items():
            _install(module, walk.prefix(block), linear, writer.as_stored(source, linear, weight))
        walk.advance(block, walk.hidden)
    off = size = 0.0
    for found, meant in zip(walk.hidden, wanted, strict=True):
        off += float((found - meant).square().sum())
        size += float(meant.square().sum())
    return weights, records, off / size


def _measure(
    walk: Walk, module: torch.nn.Module, block: int, linears: list[Linear]
) -> tuple[dict[str, Stats], Activations]:
    """What flows into the linears of a block that is still as it was, and what it makes of the quantized inputs. The
    original's stream, if the walk has one, is led through."""
    outputs = walk.new_stream("outputs")
    with watch(module, walk.prefix(block), linears) as watching:
        for number, hidden in enumerate(walk.hidden):
            if walk.original is not None:
                watching.original = True
                walk.original[number] = walk.batch_through(block, walk.original[number])
                watching.original = False
            outputs.append(walk.batch_through(block, hidden))
    return watching.stats, outputs


def _head_stats(walk: Walk, head: Linear) -> Stats:
    stats = Stats(torch.zeros(head.columns, head.columns))
    originals = walk.head_inputs(walk.original) if walk.original is not None else [None] * len(walk.hidden)
    for inputs, original in zip(walk.head_inputs(walk.hidden), originals, strict=True):
        stats.add(inputs, original)
    return stats


def quantize_linears(
    source: ModelFolder, jobs: list[Job], stats: Mapping[str, Stats]
) -> tuple[dict[Linear, QuantizedWeight], dict[str, dict]]:
    """Quantized weights, and a record of each linear's error and odd groups. stats: by what the linears share."""
    weights, records = {}, {}
    for job in jobs:
        linear, method = job.linear, registry.find("quantize", job.step.method)
        seen = stats.get(linear.inputs)
        known = seen if seen and seen.tokens else None
        if known is None and method.needs:
            # An expert that no calibration token reached counts every input alike; the record shows 0 tokens.
            known = Stats(torch.eye(linear.columns))
        # Without statistics rows are independent: the head of a large model is read and quantized in parts.
        height = linear.rows if method.needs else max(1, AT_ONCE // linear.columns)
        parts, off, size, odd = [], 0.0, 0.0, Counter()
        for first in range(0, linear.rows, height):
            original = source.read_weight(linear.name, linear.layout, slice(first, first + height))
            try:
                weight = method.function(original, job.grid, known, **job.step.options)
            except JettisonError as error:
                raise type(error)(f"{linear.name}: {error}") from error
            off += _energy(original - weight.dequantize(), known)
            size += _energy(original, known)
            if weight.zero is not None and weight.zero.is_floating_point():
                raise UsageError(
                    f"{linear.name}: {method.name} gave fractional zero points, which no checkpoint can store"
                )
            odd.update(check.inspect(linear.name, weight))
            parts.append(weight)
        weights[linear] = QuantizedWeight.stack(parts)
        records[linear.name] = {"grid": str(job.grid), "error": round(off / max(size, 1e-30), 8)} | dict(odd)
        if seen:
            records[linear.name]["tokens"] = seen.tokens
    return weights, records


def _energy(matrix: torch.Tensor, stats: Stats | None) -> float:
    """The mean of ‖matrix x‖² over the calibration inputs x; ‖matrix‖² where there are none."""
    return float((matrix * (matrix @ stats.hessian if stats else matrix)).sum(dtype=torch.float64))


def _replay(source: ModelFolder, jobs: list[Job], block: int, walk: Walk, shard: Checkpoint) -> None:
    """Lead the hidden states through a block that an earlier run has finished."""
    with walk.block(block) as module:
        if walk.original is not None:
            walk.advance(block, walk.original)
        for job in jobs:
            dense = writer.read_back(source, shard, job.linear, job.grid)
            _install(module, walk.prefix(block), job.linear, dense)
        walk.advance(block, walk.hidden)


def _install(module: torch.nn.Module, prefix: str, linear: Linear, dense: torch.Tensor) -> None:
    module.get_submodule(linear.name.removeprefix(prefix + ".")).weight.data = dense


def _unties(source: ModelFolder, jobs: list[Job]) -> bool:
    return source.anatomy.tied and any({"head", "embed"} & set(job.linear.roles) for job in jobs)


def _packed_grids(jobs: list[Job]) -> dict[str, Grid]:
    return {job.linear.name: job.grid for job in jobs if compressed_tensors.storable(job.linear)}


def _finish(source: ModelFolder, recipe: Recipe, jobs: list[Job], out: Path, journal: Journal, seed: int) -> None:
    entries = [entry for entry in journal.entries if "unit" in entry]
    grids = _packed_grids(jobs)
    writer.finish(source, out, [entry["file"] for entry in entries], grids, _unties(source, jobs))
    unseen = [name for entry in entries for name, record in entry["linears"].items() if record.get("tokens") == 0]
    if unseen:
        say(f"note: no calibration token reached {len(unseen)} expert matrices, such as {unseen[0]}: calibrate on more")
    update_manifest(
        out,
        jettison=version("jettison"),
        teacher={"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()},
        license=source.license,
        recipe=recipe.to_dict(),
        seed=seed,
        versions={name: version(name) for name in ("torch", "transformers", "compressed-tensors", "safetensors")},
        hashes={entry["file"]: entry["sha256"] for entry in entries},
        not_in_transformers=compressed_tensors.problems(source.anatomy, grids),
        stored_dense=[job.linear.name for job in jobs if job.linear.name not in grids],
        uncalibrated=unseen,
        check=_check(source, jobs, out, entries),
        blocks=[{"error": entry["error"], "linears": entry["linears"]} for entry in entries],
    )


def _check(source: ModelFolder, jobs: list[Job], out: Path, entries: list[dict]) -> dict[str, Any]:
    """What the checks after the export found. Codes were compared as each shard was written."""
    notes = []
    for kind, meaning in (("constant", "one code throughout"), ("saturated", "every code at an end of the grid")):
        odd = {name: record[kind] for entry in entries for name, record in entry["linears"].items() if kind in record}
        if odd:
            worst = max(odd, key=odd.get)
            notes.append(f"{kind} groups ({meaning}): {sum(odd.values())} in {len(odd)} linears, most in {worst}")
            say(f"note: {notes[-1]}")
    block = check.check_block(source, out, [job.linear for job in jobs])
    return {"linears": len(jobs), "block": block, "notes": notes}


def _check_disk(source: ModelFolder, out: Path) -> None:
    folder = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    written = sum(file.stat().st_size for file in out.glob("model-*.safetensors"))
    free, needed = shutil.disk_usage(folder).free, source.checkpoint.file_bytes // 2 - written
    if free < needed:
        raise JettisonError(
            f"{folder} has {free / 1e9:.3f} GB free; {source.name} has {source.checkpoint.file_bytes / 1e9:.3f} GB and "
            f"compressing it may need {needed / 1e9:.3f} GB"
        )
