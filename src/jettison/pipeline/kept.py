"""Matrices of a quantized source that stay as they are packed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.format import choose_format
from jettison.formats.runtimes import find_runtime, illegal
from jettison.graph.folder import ModelFolder
from jettison.pipeline.jobs import Job


def with_kept(source: ModelFolder, jobs: list[Job], runtime: str | None = None) -> list[Job]:
    """Return the jobs with one for every packed matrix that stays as it is, in the order of the model.

    A packed matrix stays if no step claims it, or if its step only rounds it and asks for as many bits per weight as it
    has, or more: rounding could only lose. Matrices that runtimes fuse stay together or not at all. If the runtime
    would not load the result, matrices that no step claims are stored in 16 bits.
    """
    if not isinstance(source, DequantizedFolder):
        return jobs
    by_linear, kept = {job.linear: job for job in jobs}, {}
    for linear in source.anatomy:
        grid, job = source.grids.get(linear.name), by_linear.get(linear)
        if grid is None or (job and (job.prune or not job.step)):
            continue
        if job is None or job.grid.bits_per_weight(linear.columns) >= grid.bits_per_weight(linear.columns):
            kept[linear] = Job(linear, grid=grid, kept=True)
    parts: dict[str, list] = {}
    for linear in source.anatomy:
        parts.setdefault(linear.fused, []).append(linear)
    for fused in parts.values():
        grids = {str(job.grid) if (job := kept.get(part) or by_linear.get(part)) else "" for part in fused}
        if len(grids) > 1:
            kept = {linear: job for linear, job in kept.items() if linear not in fused}
    result = [job for linear in source.anatomy if (job := kept.get(linear) or by_linear.get(linear))]
    embedding, head = source.anatomy.linears[0], source.anatomy.head
    if source.anatomy.tied and embedding in kept and head in kept:  # one matrix of the source, and of the result
        result = [replace(job, tied=job.linear == embedding) for job in result]
    return result if runtime is None or _loads(source, result, runtime) else jobs


def _loads(source: ModelFolder, jobs: list[Job], name: str) -> bool:
    """Return whether a runtime loads the matrices of these jobs, in a format that Jettison writes."""
    runtime, grids = find_runtime(name), {job.linear.name: job.grid for job in jobs if job.grid}
    written = [format.name for format in runtime.formats if format.written]
    if any(job.tied for job in jobs) and not runtime.format.tied:
        return False
    return bool(written) and not illegal(runtime, source.anatomy, grids, choose_format(source.anatomy, grids, written))


def before(source: ModelFolder, jobs: Iterable[Job]) -> dict[str, Any]:
    """Return the section of jettison.json that says how the source was quantized; {} for one in full precision."""
    if not isinstance(source, DequantizedFolder):
        return {}
    kept = [job.linear.name for job in jobs if job.kept]
    count = len(source.grids | source.reordered)
    section = {"method": source.quantization.get("quant_method"), "matrices": count, "kept": kept}
    return {"quantized_before": section}
