"""``compress``: the loop over the blocks of a model.

For every block the loop reads its weights, collects its statistics, applies the recipe's methods, writes its shard and
frees the memory. At most one block is in memory; only models that are no chain of blocks stay in memory as a whole. A
journal line after every block lets a killed run continue and write the same bytes.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jettison.core import parallel
from jettison.core.errors import JettisonError
from jettison.core.files import check_folder, file_digest, size_of
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_seed
from jettison.core.progress import LOG, bar, logged, say
from jettison.domains.domain import find_domain
from jettison.domains.text.data import Text
from jettison.encodings.grid import Grid
from jettison.formats import check
from jettison.formats.dequantized import open_source
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import command_line, read_manifest, update_manifest
from jettison.formats.transformers_types import not_in_transformers
from jettison.formats.writer import Writer
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.experts import stacked_left
from jettison.graph.folder import ModelFolder
from jettison.graph.source_check import check_source
from jettison.graph.whole import open_walk, require_runs
from jettison.pipeline import depth, program
from jettison.pipeline.applying import one_by_one
from jettison.pipeline.extra_jobs import assign_extra, say_extra
from jettison.pipeline.first_step import first_step
from jettison.pipeline.jobs import Job, adjusted, assign, open_writer, say_adjusted, say_tied
from jettison.pipeline.kept import before, with_kept
from jettison.pipeline.trained import written_shards
from jettison.pipeline.units import AnyWalk, compress_unit, replay, unties
from jettison.recipe.recipe import Recipe, load_recipe, with_images, with_windows
from jettison.statistics.allocation import allocate

JOURNAL, SPILL = "journal.jsonl", "activations"
BEFORE = (depth.FOLDER, program.FOLDER, LOG)  # what the first step may leave beside the journal of the run
STACKED = 0.01  # of the weights: from this share on, the run says that stacked matrices were not compressed


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
    """Compress a model by a recipe and write a Hugging Face checkpoint into folder ``out``.

    model: ``scribe``, a local folder, or a hub id.
    recipe: a preset's name, a YAML file, a mapping or a Recipe.
    changes: ``verb.option=value`` strings that change the recipe.
    seed: of everything random.
    spill: keep the activations of the calibration text in files of ``out``, not in memory.
    runtime: refuse, before any work, a result that this runtime would not load.
    format: of the checkpoint; by default the first that can hold the result.
    images: calibration images of an image classifier, a folder of class subfolders or a parquet file.
    workers: processes that prune the linears of a block side by side.
    address: a Ray cluster to use instead (``auto``, ``local``, ``HOST:PORT`` or ``ray://HOST:PORT``).

    A run that was killed continues when ``compress`` is called again; shards that are then missing or damaged are
    written again.

    Returns the jettison.json of ``out``.
    A quantized model or a GGUF file may be compressed again: ``pipeline.kept`` says which matrices stay packed.
    Raises UsageError for a recipe that does not fit the model or the runtime, or a folder that holds another run (other
    weights, tokenizer, text or settings); JettisonError for missing, misshapen or non-finite weights, a full disk, or a
    folder that another process works on.
    """
    check_seed(seed)
    parallel.check_workers(workers, address)
    changes, asked, source = list(changes), recipe, open_source(model)
    recipe = with_images(with_windows(load_recipe(recipe, changes), source.positions), images)
    if (source.folder / MANIFEST).exists():
        read_manifest(source.folder)  # raises if damaged; its teacher is recorded only at the end of the run
    _ = source.skeleton  # raises, before any work, for a model that transformers cannot build
    jobs, out = with_kept(source, assign(source, recipe, runtime), runtime), check_run_folder(out)
    if first_step(recipe, "depth"):
        data = depth.check_depth(source, recipe)
        with locked(out):
            source = depth.prune_folder(source, recipe, data, out, seed)
        jobs = assign(source, recipe, runtime)
    own = program.carried(source)
    if first_step(recipe, "program"):
        program.check_program(source, recipe)
        with locked(out):
            own = program.find_program(source, recipe, out, seed)
    jobs += (extra := assign_extra(source, recipe, runtime))
    writer = open_writer(source, jobs, runtime, format)
    for note in filter(None, (say_adjusted(jobs), say_extra(source, extra), say_tied(source, recipe, runtime))):
        say(f"note: {note}")
    if not (out / MANIFEST).exists():
        _check_disk(source, out, dense=any(not job.grid for job in jobs))
        require_runs(source, find_domain(source).example(source)[0], [job.linear for job in jobs])
    with locked(out):
        serial = workers == 1 and address is None
        pool = one_by_one if serial else partial(parallel.map, workers=workers, address=address)
        _compress(writer, recipe, jobs, out, seed, out / SPILL if spill else None, pool, own)
    for note in not_in_transformers(writer.format, source, _packed_grids(writer, jobs)):
        say(f"note: {note}")
    options = {"recipe": asked, "set": changes, "seed": seed, "runtime": runtime, "format": format, "images": images}
    command = command_line("compress", model, options, {"seed": 0})
    if "command" not in read_manifest(out):
        update_manifest(out, command=command)
    return read_manifest(out)


def check_run_folder(out: str | Path) -> Path:
    """Check the folder of a run, new or begun, before the work. Raises UsageError as ``check_folder``."""
    # Depth and program steps come before the run's own journal.
    begun = any(os.path.isfile(Path(out) / first.FOLDER / first.JOURNAL) for first in (depth, program))
    return check_folder(out, JOURNAL, also=BEFORE if begun else ())


def _compress(
    writer: Writer, recipe: Recipe, jobs: list[Job], out: Path, seed: int, spill: Path | None, pool: Callable,
    own: program.Found | None,
) -> None:  # fmt: skip
    """Run or continue the compression of a locked folder, unless it is finished already."""
    source = writer.source
    adaptive = any(job.adaptive for job in jobs)
    needs = frozenset().union(*(job.needs for job in jobs))
    calibrated = bool(needs) or adaptive

    def checked_inputs() -> torch.Tensor | None:
        check_source(source, [job.linear for job in jobs])
        return find_domain(source).calibration(source, recipe.calibration, seed) if calibrated else None

    fresh = not (out / JOURNAL).exists()
    # Checked before the journal exists: after a failure here the folder is still free for another run.
    tokens = checked_inputs() if fresh else None
    inputs = _inputs(source, recipe, jobs, seed, calibrated)
    inputs |= {"program": file_digest(own.path)} if own else {}
    journal = Journal(out / JOURNAL, inputs, also=BEFORE)
    placed = own.place(out) if own else {}
    finished = journal.last(finished=True)
    kept = _intact(out, journal)
    if finished and len(kept) == source.anatomy.blocks + 1:
        return
    tokens = tokens if fresh else checked_inputs()
    shutil.rmtree(out / SPILL, ignore_errors=True)  # left by a killed run: the states are computed again
    walk = None
    if adaptive:
        jobs = _allocated(source, jobs, tokens, recipe.calibration["text"], journal)
    if needs:
        walk = open_walk(source, tokens, twice="cross" in needs, spill=spill)
    _run(writer, jobs, out, journal, kept, walk, pool)
    shutil.rmtree(out / SPILL, ignore_errors=True)
    more = {"program": own.section} if own else {}
    _finish(writer, recipe, jobs, out, journal, seed, placed, **more)
    journal.add(finished=True)


def _inputs(source: ModelFolder, recipe: Recipe, jobs: list[Job], seed: int, calibrated: bool) -> dict[str, Any]:
    """Return everything that the written bytes depend on, by its content, for the journal's first line."""
    domain, settings = find_domain(source), recipe.calibration
    grids = {job.linear.name: str(job.grid) for job in adjusted(jobs)}  # adjusted grids depend on the runtime too
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
    """Return unit -> journal entry of every unit whose shard need not be made again.

    A shard is intact as ``compress`` wrote it, or as a later recovery rewrote it. If any shard is lost, the rewritten
    ones count as lost too: the lost shard was computed from the shards before it as ``compress`` wrote them.
    """
    units = {entry["unit"]: entry for entry in journal.entries if "unit" in entry}
    files = {unit: out / entry["file"] for unit, entry in units.items()}
    digests = {unit: file_digest(file) if file.is_file() else None for unit, file in files.items()}
    unchanged = {unit: entry for unit, entry in units.items() if digests[unit] == entry["sha256"]}
    recovered = written_shards(out)
    if all(unit in unchanged or digests[unit] in recovered.get(units[unit]["file"], ()) for unit in units):
        return units
    lost = [files[unit].name for unit in units if unit not in unchanged]
    say(f"note: {', '.join(lost[:3])} of {out} is missing or damaged, so it is made again")
    return unchanged


def _allocated(source: ModelFolder, jobs: list[Job], tokens: torch.Tensor, text: str, journal: Journal) -> list[Job]:
    """Return the jobs with the sparsity that the allocation of their step gives each linear.

    The journal keeps the result, so that a continued run uses the same sparsities.
    """
    entry = journal.last(allocated=True)
    if not entry:
        sparsities: dict[str, float] = {}
        for allocation in dict.fromkeys(job.prune.allocation for job in jobs if job.prune):
            patterns = {job.linear: job.pattern for job in jobs if job.prune and job.prune.allocation == allocation}
            sparsities |= allocate(source, patterns, allocation, tokens, Text("books" if text == "synthetic" else text))
        journal.add(allocated=True, sparsity=sparsities)
        entry = journal.last(allocated=True)
    allocated = lambda job: replace(job.pattern, sparsity=entry["sparsity"][job.linear.name])
    return [replace(job, pattern=allocated(job)) if job.linear.name in entry["sparsity"] else job for job in jobs]


def _run(
    writer: Writer,
    jobs: list[Job],
    out: Path,
    journal: Journal,
    kept: dict[int, dict[str, Any]],
    walk: AnyWalk | None,
    pool: Callable = one_by_one,
) -> None:
    """Compress all units but those in ``kept``, and add each to the journal.

    kept: unit -> journal entry of the units that an earlier run finished.
    """
    blocks = writer.source.anatomy.blocks
    with bar("compress", blocks + 1, len(kept)) as progress:
        for unit in range(blocks + 1):  # the last unit is the part of the model outside the blocks
            block = unit if unit < blocks else None
            if entry := kept.get(unit):
                if walk and block is not None:
                    block_jobs = [job for job in jobs if job.linear.block == block]
                    shard = Checkpoint(out, [out / entry["file"]])
                    replay(writer, block_jobs, block, walk, shard, entry.get("changed", ()))
                continue
            entry = compress_unit(writer, jobs, block, walk, out, pool)
            journal.add(unit=unit, **entry)
            error = entry["error"]
            progress.advance(note="" if error is None else f"error of block {error:.4f}")


def _packed_grids(writer: Writer, jobs: list[Job]) -> dict[str, Grid]:
    """Return linear's name -> grid, of the quantized linears that the format packs."""
    return {job.linear.name: job.grid for job in jobs if job.grid and writer.format.packs(job.linear)}


def _finish(
    writer: Writer, recipe: Recipe, jobs: list[Job], out: Path, journal: Journal, seed: int, hashes: dict[str, str],
    **more: Any,
) -> None:  # fmt: skip
    """Write the config and other companion files, and jettison.json.

    hashes: of files beside the shards.
    more: other sections of jettison.json.
    """
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
        depth=read_manifest(source.folder).get("depth") if (source.folder / MANIFEST).exists() else None,
        versions={name: version(name) for name in ("torch", source.library, *writer.format.LIBRARIES)},
        format=writer.name,
        hashes={entry["file"]: entry["sha256"] for entry in entries} | hashes,
        not_in_transformers=not_in_transformers(writer.format, source, grids),
        stored_dense=[job.linear.name for job in jobs if job.grid and job.linear.name not in grids],
        uncalibrated=unseen,
        **({"replaced": list(source.replaced)} if source.replaced else {}),
        **({"library": source.layout.library} if source.layout.part else {}),
        check=_check(source, jobs, out, entries),
        blocks=[{"error": entry["error"], "linears": entry["linears"]} for entry in entries],
        **before(source, jobs) | more,
    )


def _teacher(source: ModelFolder) -> dict[str, str]:
    """Return name, folder and fingerprint of the original that the result is compared with.

    This is the source model; if Jettison wrote that one (pruned, or re-densified), the original it was made from.
    """
    if (source.folder / MANIFEST).exists():
        return read_manifest(source.folder)["teacher"]
    return {"name": source.name, "folder": str(source.folder), "fingerprint": source.fingerprint()}


def _check(source: ModelFolder, jobs: list[Job], out: Path, entries: list[dict]) -> dict[str, Any]:
    """Check the finished folder; return the results and the notes that were printed.

    The codes need no check here: they were compared when each shard was written.
    """
    notes = []
    for kind, meaning in (("constant", "one code throughout"), ("saturated", "every code at an end of the grid")):
        count = {name: record[kind] for entry in entries for name, record in entry["linears"].items() if kind in record}
        if count:
            worst = max(count, key=count.get)
            notes.append(f"{kind} groups ({meaning}): {sum(count.values())} in {len(count)} linears, most in {worst}")
    tokens = {name: record.get("tokens") for entry in entries for name, record in entry["linears"].items()}
    few = [job.linear for job in jobs if job.prune and 0 < (tokens[job.linear.name] or 0) < job.linear.columns]
    if few:
        first = f"{few[0].name} ({tokens[few[0].name]} for {few[0].columns})"
        notes.append(f"{len(few)} matrices saw fewer tokens than they have inputs, such as {first}: calibrate on more")
    if left := stacked_left(source.skeleton):
        size = sum(source.skeleton.get_parameter(name).numel() for name in left)
        share = size / sum(parameter.numel() for parameter in source.skeleton.parameters())
        if share >= STACKED:
            form = "stacked matrices of a form that Jettison does not know"
            notes.append(f"not compressed: {share:.0%} of the weights, which are {form}, such as {left[0]}")
    for note in notes:
        say(f"note: {note}")
    block = check.check_block(source, out, [job.linear for job in jobs], find_domain(source).example(source)[0])
    return {"linears": len(jobs), "block": block, "notes": notes}


def _check_disk(source: ModelFolder, out: Path, dense: bool) -> None:
    """Raise JettisonError if the disk may be too small for the result.

    dense: some linears stay dense, so the result may be as large as the source; else it is at most half as large.
    """
    folder = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    written = size_of((out / source.layout.part).glob(f"{source.layout.stem}-*.safetensors"))
    free, needed = shutil.disk_usage(folder).free, source.checkpoint.file_bytes // (1 if dense else 2) - written
    if free < needed:
        raise JettisonError(
            f"{folder} has {free / 1e9:.3f} GB free; {source.name} has {source.checkpoint.file_bytes / 1e9:.3f} GB and "
            f"compressing it may need {needed / 1e9:.3f} GB"
        )
