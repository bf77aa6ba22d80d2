"""One unit of a model, compressed: its statistics, its methods, its shard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jettison.core.files import file_digest
from jettison.core.tensors import write_tensors
from jettison.formats import check, writer
from jettison.formats.writer import Stored
from jettison.graph.activations import Activations
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder
from jettison.graph.walk import Walk
from jettison.pipeline.jobs import Job, apply_methods, one_by_one
from jettison.statistics.stats import Stats, watch

JOURNAL, SPILL = "journal.jsonl", "activations"


def compress_unit(
    source: ModelFolder, jobs: list[Job], block: int | None, walk: Walk | None, out: Path, pool: Callable = one_by_one
) -> dict[str, Any]:
    """Do a block, or with None what lies outside the blocks: prune and quantize it, write its shard, check that.
    Returns the shard's ``file`` and ``sha256``, the ``error`` of the block's output, and a record for each of
    ``linears``. pool: ``parallel.map`` with its workers."""
    blocks = source.anatomy.blocks
    here = [job for job in jobs if job.linear.block == block]
    weights, records, error = _compress_block(source, here, block, walk, pool)
    file = out / f"model-{(blocks if block is None else block) + 1:05d}-of-{blocks + 1:05d}.safetensors"
    write_tensors(file, writer.shard_tensors(source, block, weights, unties(source, jobs)))
    check.check_shard(source, file, weights)
    source.checkpoint.release()
    return {"file": file.name, "sha256": file_digest(file), "error": error, "linears": records}


def _compress_block(
    source: ModelFolder, jobs: list[Job], block: int | None, walk: Walk | None, pool: Callable
) -> tuple[dict[Linear, Stored], dict[str, dict], float | None]:
    """New weights, a record per linear, and with a walk the relative squared error of the block's output."""
    if walk is None or block is None:
        stats = {}
        if walk and any("head" in job.linear.roles for job in jobs):
            stats[source.anatomy.head.inputs] = _head_stats(walk, source.anatomy.head)
        return *apply_methods(source, jobs, stats, pool), None
    with walk.block(block) as module:
        dense = any("dense" in job.needs for job in jobs)
        stats, wanted = _measure(walk, module, block, [job.linear for job in jobs], dense)
        weights, records = apply_methods(source, jobs, stats, pool)
        for linear, weight in weights.items():
            _install(module, walk.prefix(block), linear, writer.as_stored(source, linear, weight))
        walk.advance(block, walk.hidden)
    off = size = 0.0
    for found, meant in zip(walk.hidden, wanted, strict=True):
        off += float((found - meant).square().sum())
        size += float(meant.square().sum())
    return weights, records, off / max(size, 1e-30)  # the states may all be zero


def _measure(
    walk: Walk, module: torch.nn.Module, block: int, linears: list[Linear], dense: bool
) -> tuple[dict[str, Stats], Activations]:
    """The statistics of the linears of a block that is still the original, and its outputs for compressed inputs. The
    original's stream, if the walk has one, is led through."""
    outputs = walk.new_stream("outputs")
    with watch(module, walk.prefix(block), linears, dense) as watching:
        for number, hidden in enumerate(walk.hidden):
            if walk.original is not None:
                watching.original = True
                walk.original[number] = walk.batch_through(block, walk.original[number])
                watching.original = False
            outputs.append(walk.batch_through(block, hidden))
    return watching.stats, outputs


def _head_stats(walk: Walk, head: Linear) -> Stats:
    stats = Stats.empty(head.columns, dense=walk.original is not None)
    originals = walk.head_inputs(walk.original) if walk.original is not None else [None] * len(walk.hidden)
    for inputs, original in zip(walk.head_inputs(walk.hidden), originals, strict=True):
        stats.add(inputs, original)
    return stats


def replay(source: ModelFolder, jobs: list[Job], block: int, walk: Walk, shard: Checkpoint) -> None:
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


def unties(source: ModelFolder, jobs: list[Job]) -> bool:
    return source.anatomy.tied and any({"head", "embed"} & set(job.linear.roles) for job in jobs)
