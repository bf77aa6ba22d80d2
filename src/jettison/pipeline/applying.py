"""What the methods of a recipe make of the linears of a block."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.quantized import AT_ONCE, QuantizedWeight
from jettison.formats import check
from jettison.formats.writer import Stored
from jettison.graph.anatomy import Linear
from jettison.graph.edits import BlockView, Put, Scale, find_folds
from jettison.graph.folder import ModelFolder
from jettison.pipeline.jobs import Job
from jettison.pipeline.pruning import Task, run_task
from jettison.recipe import registry
from jettison.recipe.recipe import Step
from jettison.statistics.stats import Stats

LARGEST = 1e8  # of a weight: squares of what it makes of an input must fit in float32


def one_by_one(function: Callable, items: Iterable) -> list:
    return [function(item) for item in items]


@dataclass
class Applied:
    """New weights; of each linear a record of its error, zeros and odd groups; other parameters that changed."""

    weights: dict[Linear, Stored] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)


def apply_methods(
    source: ModelFolder, jobs: list[Job], stats: Mapping[str, Stats], pool: Callable = one_by_one
) -> Applied:
    """What the methods of these jobs, all of one block, make of it. stats: by what the linears share."""
    # An expert that no calibration token reached counts every input alike; the record shows 0 tokens.
    known: dict[Linear, Stats | None] = {}
    for job in jobs:
        seen = stats.get(job.linear.inputs)
        known[job.linear] = seen if seen and seen.tokens else None
        if job.needs and known[job.linear] is None:
            known[job.linear] = Stats(torch.eye(job.linear.columns), absmean=torch.ones(job.linear.columns))
    pruned = _prune(source, [job for job in jobs if job.prune], known, pool)
    applied, of_block = Applied(), defaultdict(list)
    for job in jobs:
        if job.step and job.quantizer.scope == "block":
            of_block[id(job.step)].append(job)
            continue
        weight, record = _finish_linear(source, job, pruned.get(job.linear), known[job.linear])
        applied.weights[job.linear], applied.records[job.linear.name] = weight, record
    for here in of_block.values():
        apply_to_block(source, here[0].step, here, known, applied)
    for job in jobs:
        if seen := stats.get(job.linear.inputs):
            applied.records[job.linear.name]["tokens"] = seen.tokens
    return applied


def _prune(
    source: ModelFolder, jobs: list[Job], known: Mapping[Linear, Stats | None], pool: Callable
) -> dict[Linear, Stored]:
    read = lambda linear: read_linear(source, linear)[: linear.rows]
    tasks = [
        Task(
            job.linear.name,
            job.prune.method,
            job.prune.options,
            read(job.linear),
            job.pattern,
            known[job.linear],
            job.grid if job.prune.options.get("joint") else None,
        )
        for job in jobs
    ]
    return dict(zip([job.linear for job in jobs], pool(run_task, tasks), strict=True))


def read_linear(source: ModelFolder, linear: Linear, rows: slice | None = None) -> torch.Tensor:
    """(rows, columns) float32. Raises JettisonError for weights that are not finite or too large to work with."""
    weight = source.read_weight(linear.name, linear.layout, rows)
    if (largest := float(torch.linalg.vector_norm(weight, ord=math.inf))) > LARGEST:
        raise JettisonError(f"{linear.name} has a weight of {largest:g}; at most {LARGEST:g} can be worked with")
    return weight


def _finish_linear(
    source: ModelFolder, job: Job, pruned: Stored | None, known: Stats | None
) -> tuple[Stored, dict[str, Any]]:
    """Quantize what is to be, and say how far the result is from the original: error, zeros, odd groups."""
    linear, record = job.linear, {}
    joint = isinstance(pruned, QuantizedWeight)
    # Without statistics rows are independent: the head of a large model is read and quantized in parts.
    height = linear.rows if job.needs or pruned is not None else max(1, AT_ONCE // linear.columns)
    parts, off, size, odd = [], 0.0, 0.0, Counter()
    for first in range(0, linear.rows, height):
        original = read_linear(source, linear, slice(first, first + height))
        weight = original if pruned is None else pruned
        if job.grid and not joint:
            weight = _quantize(job, weight, known)
        dense = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
        off += energy(original - dense, known)
        size += energy(original, known)
        if isinstance(weight, QuantizedWeight):
            odd.update(check.inspect(linear.name, weight))
        if pruned is not None:
            job.pattern.check(dense)
            record |= {"pattern": str(job.pattern), "zeros": round(float((dense == 0).float().mean()), 6)}
        parts.append(weight)
    weight = QuantizedWeight.stack(parts) if job.grid else parts[0]
    record = ({"grid": str(job.grid)} if job.grid else {}) | {"error": round(off / max(size, 1e-30), 8)} | record
    return weight, record | dict(odd)


def _quantize(job: Job, weight: torch.Tensor, known: Stats | None) -> QuantizedWeight:
    """Zeros stay zero. Raises JettisonError if they do not, UsageError for what no checkpoint can store."""
    linear, method = job.linear, registry.find("quantize", job.step.method)
    try:
        quantized = method.function(weight, job.grid, known, **job.step.options)
    except JettisonError as error:
        raise type(error)(f"{linear.name}: {error}") from error
    check_quantized(linear, method.name, quantized)
    if job.prune and (filled := int((quantized.dequantize()[weight == 0] != 0).sum())):
        raise JettisonError(f"{linear.name}: {method.name} made {filled} of the zeros that pruning left nonzero")
    return quantized


def check_quantized(linear: Linear, method: str, weight: QuantizedWeight) -> None:
    """Raises JettisonError for scales that are not finite, UsageError for what no checkpoint can store."""
    if not torch.isfinite(weight.scale).all():
        raise JettisonError(f"{linear.name}: {method} gave scales that are not finite")
    if weight.zero is not None and weight.zero.is_floating_point():
        raise UsageError(f"{linear.name}: {method} gave fractional zero points, which no checkpoint can store")


def energy(matrix: torch.Tensor, stats: Stats | None) -> float:
    """The mean of ‖matrix x‖² over the calibration inputs x; ‖matrix‖² where there are none."""
    return float((matrix * (matrix @ stats.hessian if stats else matrix)).sum(dtype=torch.float64))


def apply_to_block(
    source: ModelFolder, step: Step, jobs: list[Job], known: Mapping[Linear, Stats | None], applied: Applied
) -> None:
    """A quantize step whose method sees all of its linears in a block together, and asks for edits."""
    linears = [job.linear for job in jobs]
    block, anatomy = linears[0].block, source.anatomy
    path, every = ("", []) if block is None else (anatomy.path(block), anatomy.of_block(block))
    config = source.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or queries
    heads = (queries, shared) if isinstance(queries, int) and isinstance(shared, int) else None
    view = BlockView(
        linears,
        list(find_folds(anatomy.family, path, every, linears, source.has, heads)),
        lambda linear: read_linear(source, linear),
        source.read,
    )
    stats = {linear.inputs: known[linear] for linear in linears}
    method = registry.find("quantize", step.method)
    try:
        edits = method.function(view, {job.linear: job.grid for job in jobs}, stats, **step.options)
    except JettisonError as error:
        raise type(error)(f"{path or 'outside the blocks'}: {error}") from error
    scales: dict[str, list[Scale]] = defaultdict(list)
    put = {}
    for edit in edits:
        if isinstance(edit, Scale):
            scales[edit.name].append(edit)
        elif isinstance(edit, Put):
            put[edit.name] = edit.weight
    own = {f"{linear.name}.weight" for linear in linears}
    for name in scales.keys() - own:
        value = source.read(name).float()
        for edit in scales[name]:
            value = edit.of(value)
        applied.changed[name] = value
    for job in jobs:
        weight = put[job.linear.name]
        check_quantized(job.linear, step.method, weight)
        record = _record(source, job, weight, scales[f"{job.linear.name}.weight"], known[job.linear])
        applied.weights[job.linear], applied.records[job.linear.name] = weight, record


def _record(
    source: ModelFolder, job: Job, weight: QuantizedWeight, scales: list[Scale], known: Stats | None
) -> dict[str, Any]:
    """The error of a matrix beside its scaled original, on inputs that are divided by what its columns are multiplied
    with."""
    original, inputs = read_linear(source, job.linear), torch.ones(job.linear.columns)
    for edit in scales:
        original = edit.of(original)
        inputs = inputs * edit.factor if edit.axis == 1 else inputs
    seen = Stats(known.hessian / inputs / inputs.unsqueeze(1)) if known else None
    error = energy(original - weight.dequantize(), seen) / max(energy(original, seen), 1e-30)
    return {"grid": str(job.grid), "error": round(error, 8)} | check.inspect(job.linear.name, weight)
