"""Compress one unit of a model (a block, or the part outside the blocks): its statistics, its methods, its shard."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from jettison.core.files import file_digest
from jettison.core.tensors import write_tensors
from jettison.formats import check
from jettison.formats.writer import Writer
from jettison.graph.activations import Activations
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder
from jettison.graph.walk import Walk
from jettison.graph.whole import WholeWalk
from jettison.pipeline.applying import Applied, apply_methods, one_by_one
from jettison.pipeline.jobs import Job
from jettison.statistics.stats import Stats, watch

AnyWalk = Walk | WholeWalk  # a chain of blocks, one in memory at a time; or any model, whole in memory


def compress_unit(
    writer: Writer, jobs: list[Job], block: int | None, walk: AnyWalk | None, out: Path, pool: Callable = one_by_one
) -> dict[str, Any]:
    """Prune and quantize a block, write its shard, and check the shard.

    writer: of the checkpoint.
    jobs: of the whole model.
    block: number of the block; None for the part of the model outside the blocks.
    walk: runs the calibration inputs through the model block by block; None if no method needs them.
    out: the folder of the checkpoint.
    pool: maps a function over the linears to prune, such as ``parallel.map`` with its workers.

    Returns the shard's ``file`` and ``sha256``, the relative squared ``error`` of the block's output (None without a
    walk, and outside the blocks), and ``linears``: name -> record. ``changed`` lists other parameters that changed.
    Raises JettisonError if the shard reads back differently.
    """
    source, blocks = writer.source, writer.source.anatomy.blocks
    unit_jobs = [job for job in jobs if job.linear.block == block and not job.tied]
    applied, error = _compress_block(writer, unit_jobs, block, walk, pool)
    file = out / source.layout.shard((blocks if block is None else block) + 1, blocks + 1)
    file.parent.mkdir(exist_ok=True)
    write_tensors(file, writer.shard_tensors(block, applied.weights, unties(source, jobs), applied.changed))
    check.check_shard(writer, file, applied.weights)
    source.checkpoint.release()
    entry = {
        "file": file.relative_to(out).as_posix(),
        "sha256": file_digest(file),
        "error": error,
        "linears": applied.records,
    }
    return entry | ({"changed": sorted(applied.changed)} if applied.changed else {})


def _compress_block(
    writer: Writer, jobs: list[Job], block: int | None, walk: AnyWalk | None, pool: Callable
) -> tuple[Applied, float | None]:
    """Apply the methods to one unit; return the result and, with a walk, the block's relative squared output error."""
    source = writer.source
    if walk is None or block is None:
        own = source.anatomy.of_block(None)  # the model does not run the others, see ``graph.extra``
        stats = _outside_stats(walk, [job.linear for job in jobs if job.linear in own]) if walk else {}
        return apply_methods(source, jobs, stats, pool), None
    error = size = 0.0
    with walk.block(block) as module:
        # The original and the compressed version of this block read the same inputs: the outputs of the blocks before.
        stats, outputs = _measure(walk, module, block, jobs)
        applied = apply_methods(source, jobs, stats, pool)
        for linear, weight in applied.weights.items():
            _install(module, walk.prefix(block), f"{linear.name}.weight", writer.as_stored(linear, weight))
        for name, value in applied.changed.items():
            _install(module, walk.prefix(block), name, writer.parameter_as_stored(name, value))
        for number, expected in enumerate(outputs):
            error += float((walk.advance(block, number) - expected).square().sum())
            size += float(expected.square().sum())
    return applied, error / max(size, 1e-30)  # the states may all be zero


def _measure(
    walk: AnyWalk, module: torch.nn.Module, block: int, jobs: list[Job]
) -> tuple[dict[str, Stats], Activations]:
    """Run a block that is not compressed yet, and collect statistics.

    Returns ``Linear.inputs`` -> statistics, and the block's outputs for the inputs that the compressed blocks before
    give. If the walk has a stream of the original's states, they pass through the block too.
    """
    outputs, needs = walk.new_stream("outputs"), frozenset().union(*(job.needs for job in jobs))
    linears = [job.linear for job in jobs]
    with watch(module, walk.prefix(block), linears, "dense" in needs, "absmean" in needs) as watching:
        for number in range(len(walk.batches)):
            if walk.twice:
                watching.original = True
                walk.lead_original(block, number)
                watching.original = False
            outputs.append(walk.output(block, number))
    return watching.stats, outputs


def _outside_stats(walk: AnyWalk, linears: list[Linear]) -> dict[str, Stats]:
    """Collect the statistics of linears outside the blocks, such as the head, behind the compressed blocks.

    Returns ``Linear.inputs`` -> statistics.
    """
    if isinstance(walk, WholeWalk):
        with watch(walk.model, "", linears) as watching:
            walk.run()
        return watching.stats
    head = next((linear for linear in linears if "head" in linear.roles), None)
    return {head.inputs: _head_stats(walk, head)} if head else {}


def _head_stats(walk: Walk, head: Linear) -> Stats:
    """Collect the statistics of the head's inputs, batch by batch."""
    stats = Stats.empty(head.columns, dense=walk.twice)
    originals = walk.head_inputs(walk.original) if walk.twice else [None] * len(walk.hidden)
    for inputs, original in zip(walk.head_inputs(walk.hidden), originals, strict=True):
        stats.add(inputs, original)
    return stats


def replay(
    writer: Writer, jobs: list[Job], block: int, walk: AnyWalk, shard: Checkpoint, changed: Iterable[str] = ()
) -> None:
    """Lead the hidden states through a block that an earlier run has finished.

    jobs: of the block.
    shard: holds the compressed block.
    changed: names of parameters that the methods changed besides the linears.
    """
    with walk.block(block) as module:
        if walk.twice:
            for number in range(len(walk.batches)):
                walk.lead_original(block, number)
        for job in jobs:
            dense = writer.read_back(shard, job.linear, job.grid)
            _install(module, walk.prefix(block), f"{job.linear.name}.weight", dense)
        for name in changed:
            stored = shard.read(writer.source.locate(name)[0]).float()
            _install(module, walk.prefix(block), name, stored)
        for number in range(len(walk.batches)):
            walk.advance(block, number)


def _install(module: torch.nn.Module, prefix: str, parameter: str, value: torch.Tensor) -> None:
    module.get_parameter(parameter.removeprefix(prefix).removeprefix(".")).data = value


def unties(source: ModelFolder, jobs: list[Job]) -> bool:
    """Return whether the result needs separate tensors for a head and an embedding that the source ties."""
    if any(job.tied for job in jobs):
        return False
    return source.anatomy.tied and any({"head", "embed"} & set(job.linear.roles) for job in jobs)
