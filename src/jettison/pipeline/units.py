"""One unit of a model, compressed: its statistics, its methods, its shard."""

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

JOURNAL, SPILL = "journal.jsonl", "activations"


AnyWalk = Walk | WholeWalk


def compress_unit(
    writer: Writer, jobs: list[Job], block: int | None, walk: AnyWalk | None, out: Path, pool: Callable = one_by_one
) -> dict[str, Any]:
    """Do a block, or with None what lies outside the blocks: prune and quantize it, write its shard, check that.
    Returns the shard's ``file`` and ``sha256``, the ``error`` of the block's output, and a record for each of
    ``linears``. pool: ``parallel.map`` with its workers."""
    source, blocks = writer.source, writer.source.anatomy.blocks
    here = [job for job in jobs if job.linear.block == block]
    applied, error = _compress_block(writer, here, block, walk, pool)
    file = out / f"model-{(blocks if block is None else block) + 1:05d}-of-{blocks + 1:05d}.safetensors"
    write_tensors(file, writer.shard_tensors(block, applied.weights, unties(source, jobs), applied.changed))
    check.check_shard(writer, file, applied.weights)
    source.checkpoint.release()
    entry = {"file": file.name, "sha256": file_digest(file), "error": error, "linears": applied.records}
    return entry | ({"changed": sorted(applied.changed)} if applied.changed else {})


def _compress_block(
    writer: Writer, jobs: list[Job], block: int | None, walk: AnyWalk | None, pool: Callable
) -> tuple[Applied, float | None]:
    """What the methods made, and with a walk the relative squared error of the block's output."""
    source = writer.source
    if walk is None or block is None:
        stats = _outside_stats(walk, [job.linear for job in jobs]) if walk else {}
        return apply_methods(source, jobs, stats, pool), None
    off = size = 0.0
    with walk.block(block) as module:
        stats, wanted = _measure(walk, module, block, jobs)
        applied = apply_methods(source, jobs, stats, pool)
        for linear, weight in applied.weights.items():
            _install(module, walk.prefix(block), f"{linear.name}.weight", writer.as_stored(linear, weight))
        for name, value in applied.changed.items():
            _install(module, walk.prefix(block), name, writer.parameter_as_stored(name, value))
        for number, meant in enumerate(wanted):
            off += float((walk.advance(block, number) - meant).square().sum())
            size += float(meant.square().sum())
    return applied, off / max(size, 1e-30)  # the states may all be zero


def _measure(
    walk: AnyWalk, module: torch.nn.Module, block: int, jobs: list[Job]
) -> tuple[dict[str, Stats], Activations]:
    """The statistics of the linears of a block that is still the original, and its outputs for compressed inputs. The
    original's stream, if the walk has one, is led through."""
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
    """Of what lies outside the blocks, and is given the outputs of compressed blocks."""
    if isinstance(walk, WholeWalk):
        with watch(walk.model, "", linears) as watching:
            walk.run()
        return watching.stats
    head = next((linear for linear in linears if "head" in linear.roles), None)
    return {head.inputs: _head_stats(walk, head)} if head else {}


def _head_stats(walk: Walk, head: Linear) -> Stats:
    stats = Stats.empty(head.columns, dense=walk.twice)
    originals = walk.head_inputs(walk.original) if walk.twice else [None] * len(walk.hidden)
    for inputs, original in zip(walk.head_inputs(walk.hidden), originals, strict=True):
        stats.add(inputs, original)
    return stats


def replay(
    writer: Writer, jobs: list[Job], block: int, walk: AnyWalk, shard: Checkpoint, changed: Iterable[str] = ()
) -> None:
    """Lead the hidden states through a block that an earlier run has finished. changed: parameters that its methods
    changed beside the linears."""
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
    module.get_parameter(parameter.removeprefix(prefix + ".")).data = value


def unties(source: ModelFolder, jobs: list[Job]) -> bool:
    return source.anatomy.tied and any({"head", "embed"} & set(job.linear.roles) for job in jobs)
