"""The block loop: stream a block, collect its statistics, apply the recipe's methods, write its shard, let go.

At no time is more than one block in memory. A journal line after every block lets a killed run continue and write the
same bytes.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jettison.core import parallel
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import check_folder, file_digest, size_of
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_seed
from jettison.core.progress import bar, logged, say
from jettison.domains.domain import find_domain
from jettison.domains.text.data import Text
from jettison.encodings.grid import Grid
from jettison.formats import check
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import command_line, read_manifest, update_manifest
from jettison.formats.writer import Writer
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder
from jettison.graph.source_check import check_source
from jettison.graph.whole import open_walk
from jettison.pipeline.applying import one_by_one
from jettison.pipeline.jobs import Job, adjusted, assign, pick_format, say_adjusted
from jettison.pipeline.recovery import written_shards
from jettison.pipeline.units import AnyWalk, compress_unit, replay, unties
from jettison.recipe.recipe import Recipe, load_recipe, with_images, with_windows
from jettison.statistics.allocation import allocate

JOURNAL, SPILL = "journal.jsonl", "activations"


@logged("out")
def compress(
    model: str | Path,
    recipe: str | Path | Mapping | Recipe,
    out: str | Path,
    *,
    changes: Iterable[str] = (),
    seed: int = 0,
    spill: bool = False,
    runtime: str | None = None,
    format: str | None = None,
    images: str | Path | None = None,
    workers: int = 1,
    address: str | None = None,
) -> dict[str, Any]:
    """Compress a model by a recipe into folder ``out``, a Hugging Face checkpoint. Returns its jettison.json.

    model: ``scribe``, a local folder, or a hub id. recipe: a preset's name, a YAML file, a mapping or a Recipe, with
    ``changes`` of the form ``verb.option=value``. spill: keep the activations of the calibration text in files of
    ``out``, not in memory. runtime: refuse at once what it would not load. format: of the checkpoint; by default the
    first that can hold the result. images: what an image classifier is calibrated on, a folder of class subfolders or a
    parquet file. workers, address: of ``parallel.map``, which
    prunes the linears of a block side by side. A run that was killed continues when it is called again.

    Shards that are missing or damaged then are made again.

    Raises UsageError for a recipe that does not fit the model or the runtime, a model that is already quantized, or a
    folder that holds another run (other weights, tokenizer, text or settings); JettisonError for missing, misshapen or
    non-finite weights, a full disk, or a folder that another process works on.
    """
    check_seed(seed)
    parallel.check_workers(workers, address)
    changes, asked, source = list(changes), recipe, ModelFolder(model)
    recipe = with_images(with_windows(load_recipe(recipe, changes), source.positions), images)
    if source.quantization:
        method = source.quantization.get("quant_method")
        raise UsageError(f"{source.name} is already quantized ({method}): start from the original")
    if (source.folder / MANIFEST).exists():
        read_manifest(source.folder)  # whose teacher is recorded at the end: a damaged one is met before work
    _ = source.skeleton  # what transformers cannot build is refused before any work
    jobs, out = assign(source, recipe, runtime), check_folder(out, JOURNAL)
    writer = Writer(source, pick_format(source, jobs, runtime, format))
    if note := say_adjusted(jobs):
        say(f"note: {note}")
    if not (out / MANIFEST).exists():
        _check_disk(source, out, dense=any(not job.grid for job in jobs))
    with locked(out):
        alone = workers == 1 and address is None
        pool = one_by_one if alone else partial(parallel.map, workers=workers, address=address)
        _compress(writer, recipe, jobs, out, seed, out / SPILL if spill else None, pool)
    for note in writer.format.problems(source.anatomy, _packed_grids(writer, jobs)):
        say(f"note: {note}")
    options = {"recipe": asked, "set": changes, "seed": seed, "runtime": runtime, "format": format, "images": images}
    command = command_line("compress", model, options, {"seed": 0})
    if "command" not in read_manifest(out):
        update_manifest(out, command=command)
    return read_manifest(out)


def _compress(
    writer: Writer, recipe: Recipe, jobs: list[Job], out: Path, seed: int, spill: Path | None, pool: Callable
) -> None:
    source = writer.source
    adaptive = any(job.adaptive for job in jobs)
    needs = frozenset().union(*(job.needs for job in jobs))
    calibrated = bool(needs) or adaptive

    def checked_inputs() -> torch.Tensor | None:
        check_source(source)
        return find_domain(source).calibration(source, recipe.calibration, seed) if calibrated else None

    fresh = not (out / JOURNAL).exists()
    tokens = checked_inputs() if fresh else None  # before the folder is that of a run, so that another try may use it
    journal = Journal(out / JOURNAL, _inputs(source, recipe, jobs, seed, calibrated))
    finished = journal.last(finished=True)
    kept = _intact(out, journal)
    if finished and len(kept) == source.anatomy.blocks + 1:
        return
    tokens = tokens if fresh else checked_inputs()
    shutil.rmtree(out / SPILL, ignore_errors=True)  # of a killed run: its states are computed again
    walk = None
    if adaptive:
        jobs = _allocated(source, jobs, tokens, recipe.calibration["text"], journal)
    if needs:
        walk = open_walk(source, tokens, twice="cross" in needs, spill=spill)
    _run(writer, jobs, out, journal, kept, walk, pool)
    shutil.rmtree(out / SPILL, ignore_errors=True)
    _finish(writer, recipe, jobs, out, journal, seed)
    journal.add(finished=True)


def _inputs(source: ModelFolder, recipe: Recipe, jobs: list[Job], seed: int, calibrated: bool) -> dict[str, Any]:
    """All that the written bytes depend on, as content, for the journal's first line."""
    domain, settings = find_domain(source), recipe.calibration
    grids = {job.linear.name: str(job.grid) for job in adjusted(jobs)}  # they depend on the runtime too
    return {
        "kind": "compress",
        "model": source.identity(),
        "steps": recipe.to_dict()["steps"],
        "calibration": settings if calibrated else None,
        f"calibration {domain.DATA}": domain.calibration_digest(settings) if calibrated else None,
        "seed": seed,
        "versions": {"jettison": version("jettison"), "torch": torch.__version__},
    } | ({"grids": grids} if grids else {})


def _intact(out: Path, journal: Journal) -> dict[int, dict[str, Any]]:
    """Unit -> its entry, where its shard is as it was written. A recovery may have written it anew.

    If one shard is not, those that a recovery wrote anew are not either: the lost one was made from those before it as
    they were then.
    """
    units = {entry["unit"]: entry for entry in journal.entries if "unit" in entry}
    files = {unit: out / entry["file"] for unit, entry in units.items()}
    found = {unit: file_digest(file) if file.is_file() else None for unit, file in files.items()}
    first = {unit: entry for unit, entry in units.items() if found[unit] == entry["sha256"]}
    later = written_shards(out)
    if all(unit in first or found[unit] in later.get(units[unit]["file"], ()) for unit in units):
        return units
    lost = [files[unit].name for unit in units if unit not in first]
    say(f"note: {', '.join(lost[:3])} of {out} is missing or damaged, so it is made again")
    return first


def _allocated(source: ModelFolder, jobs: list[Job], tokens: torch.Tensor, text: str, journal: Journal) -> list[Job]:
    """The jobs, each with the sparsity that its step's allocation gives it, which the journal keeps."""
    entry = journal.last(allocated=True)
    if not entry:
        found: dict[str, float] = {}
        for step in dict.fromkeys(job.prune.allocation for job in jobs if job.prune):
            here = {job.linear: job.pattern for job in jobs if job.prune and job.prune.allocation == step}
            found |= allocate(source, here, step, tokens, Text("books" if text == "synthetic" else text))
        journal.add(allocated=True, sparsity=found)
        entry = journal.last(allocated=True)
    given = lambda job: replace(job.pattern, sparsity=entry["sparsity"][job.linear.name])
    return [replace(job, pattern=given(job)) if job.linear.name in entry["sparsity"] else job for job in jobs]


def _run(
    writer: Writer,
    jobs: list[Job],
    out: Path,
    journal: Journal,
    kept: dict[int, dict[str, Any]],
    walk: AnyWalk | None,
    pool: Callable = one_by_one,
) -> None:
    blocks = writer.source.anatomy.blocks
    with bar("compress", blocks + 1, len(kept)) as progress:
        for unit in range(blocks + 1):  # the last unit is what lies outside the blocks
            block = unit if unit < blocks else None
            if entry := kept.get(unit):
                if walk and block is not None:
                    here = [job for job in jobs if job.linear.block == block]
                    shard = Checkpoint(out, [out / entry["file"]])
                    replay(writer, here, block, walk, shard, entry.get("changed", ()))
                continue
            entry = compress_unit(writer, jobs, block, walk, out, pool)
            journal.add(unit=unit, **entry)
            error = entry["error"]
            progress.advance(note="" if error is None else f"error of block {error:.4f}")


def _packed_grids(writer: Writer, jobs: list[Job]) -> dict[str, Grid]:
    return {job.linear.name: job.grid for job in jobs if job.grid and writer.format.packs(job.linear)}


def _finish(writer: Writer, recipe: Recipe, jobs: list[Job], out: Path, journal: Journal, seed: int) -> None:
    source = writer.source
    entries = [journal.last(unit=unit) for unit in range(source.anatomy.blocks + 1)]
    grids = _packed_grids(writer, jobs)
    writer.finish(out, [entry["file"] for entry in entries], grids, unties(source, jobs))
    unseen = [name for entry in entries for name, record in entry["linears"].items() if record.get("tokens") == 0]
    if unseen:
        say(f"note: no calibration token reached {len(unseen)} expert matrices, such as {unseen[0]}: calibrate on more")
    update_manifest(
        out,
        jettison=version("jettison"),
        teacher=_teacher(source),
        license=source.license,
        recipe=recipe.to_dict(),
        seed=seed,
        versions={name: version(name) for name in ("torch", "transformers", *writer.format.LIBRARIES)},
        format=writer.name,
        hashes={entry["file"]: entry["sha256"] for entry in entries},
        not_in_transformers=writer.format.problems(source.anatomy, grids),
        stored_dense=[job.linear.name for job in jobs if job.grid and job.linear.name not in grids],
        uncalibrated=unseen,
        check=_check(source, jobs, out, entries),
        blocks=[{"error": entry["error"], "linears": entry["linears"]} for entry in entries],
    )


def _teacher(source: ModelFolder) -> dict[str, str]:
    """The original that the result is compared with: the model, or the original of the run that wrote it (pruned, or
    re-densified)."""
    if (source.folder / MANIFEST).exists():
        return read_manifest(source.folder)["teacher"]
    return {"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()}


def _check(source: ModelFolder, jobs: list[Job], out: Path, entries: list[dict]) -> dict[str, Any]:
    """What the checks after the export found. Codes were compared as each shard was written."""
    notes = []
    for kind, meaning in (("constant", "one code throughout"), ("saturated", "every code at an end of the grid")):
        odd = {name: record[kind] for entry in entries for name, record in entry["linears"].items() if kind in record}
        if odd:
            worst = max(odd, key=odd.get)
            notes.append(f"{kind} groups ({meaning}): {sum(odd.values())} in {len(odd)} linears, most in {worst}")
    tokens = {name: record.get("tokens") for entry in entries for name, record in entry["linears"].items()}
    few = [job.linear for job in jobs if job.prune and 0 < (tokens[job.linear.name] or 0) < job.linear.columns]
    if few:
        first = f"{few[0].name} ({tokens[few[0].name]} for {few[0].columns})"
        notes.append(f"{len(few)} matrices saw fewer tokens than they have inputs, such as {first}: calibrate on more")
    for note in notes:
        say(f"note: {note}")
    block = check.check_block(source, out, [job.linear for job in jobs])
    return {"linears": len(jobs), "block": block, "notes": notes}


def _check_disk(source: ModelFolder, out: Path, dense: bool) -> None:
    """dense: some of it is as large as before."""
    folder = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    written = size_of(out.glob("model-*.safetensors"))
    free, needed = shutil.disk_usage(folder).free, source.checkpoint.file_bytes // (1 if dense else 2) - written
    if free < needed:
        raise JettisonError(
            f"{folder} has {free / 1e9:.3f} GB free; {source.name} has {source.checkpoint.file_bytes / 1e9:.3f} GB and "
            f"compressing it may need {needed / 1e9:.3f} GB"
        )
