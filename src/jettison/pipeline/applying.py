"""Apply the methods of a recipe to the linears of one block: prune, quantize, and measure the error."""

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

LARGEST = 1e8  # largest absolute weight; the squares of its products with inputs must fit in float32


def one_by_one(function: Callable, items: Iterable) -> list:
    """Apply ``function`` to every item in this process; the serial stand-in for ``parallel.map``."""
    return [function(item) for item in items]


@dataclass
class Applied:
    """The result of applying methods to the linears of one block.

    weights: linear -> its new weight.
    records: linear's name -> its entry in jettison.json: error, zeros, number of odd groups.
    changed: name -> new value, of other parameters that changed, such as norms.
    """

    weights: dict[Linear, Stored] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)


def apply_methods(
    source: ModelFolder, jobs: list[Job], stats: Mapping[str, Stats], pool: Callable = one_by_one
) -> Applied:
    """Prune and quantize the linears of ``jobs``, all of one block, and record their errors.

    stats: ``Linear.inputs`` -> calibration statistics; linears that share their input share an entry.
    pool: maps a function over the linears to prune, such as ``parallel.map`` with its workers.
    """
    # For an expert that no calibration token reached, all inputs weigh the same. Its record shows 0 tokens.
    stats_of: dict[Linear, Stats | None] = {}
    for job in jobs:
        collected = stats.get(job.linear.inputs)
        stats_of[job.linear] = collected if collected and collected.tokens else None
        if job.needs and stats_of[job.linear] is None:
            stats_of[job.linear] = Stats(torch.eye(job.linear.columns), absmean=torch.ones(job.linear.columns))
    pruned = _prune(source, [job for job in jobs if job.prune], stats_of, pool)
    applied, jobs_of_step = Applied(), defaultdict(list)
    for job in jobs:
        if job.step and job.quantizer.scope == "block":
            jobs_of_step[id(job.step)].append(job)
            continue
        weight, record = _finish_linear(source, job, pruned.get(job.linear), stats_of[job.linear])
        applied.weights[job.linear], applied.records[job.linear.name] = weight, record
    for step_jobs in jobs_of_step.values():
        apply_to_block(source, step_jobs[0].step, step_jobs, stats_of, applied)
    for job in jobs:
        if collected := stats.get(job.linear.inputs):
            applied.records[job.linear.name]["tokens"] = collected.tokens
    return applied


def _prune(
    source: ModelFolder, jobs: list[Job], stats_of: Mapping[Linear, Stats | None], pool: Callable
) -> dict[Linear, Stored]:
    """Prune the linears of ``jobs`` side by side."""
    # A trial (``try_rows``) gives a linear fewer rows than its tensor has.
    read = lambda linear: read_linear(source, linear)[: linear.rows]
    tasks = [
        Task(
            job.linear.name,
            job.prune.method,
            job.prune.options,
            read(job.linear),
            job.pattern,
            stats_of[job.linear],
            job.grid if job.prune.options.get("joint") else None,
        )
        for job in jobs
    ]
    return dict(zip([job.linear for job in jobs], pool(run_task, tasks), strict=True))


def read_linear(source: ModelFolder, linear: Linear, rows: slice | None = None) -> torch.Tensor:
    """Read the weight of a linear, or only some of its rows.

    Returns (rows, columns) float32. Raises JettisonError for weights that are not finite or too large to work with.
    """
    weight = source.read_weight(linear.name, linear.layout, rows)
    if (largest := float(torch.linalg.vector_norm(weight, ord=math.inf))) > LARGEST:
        raise JettisonError(f"{linear.name} has a weight of {largest:g}; at most {LARGEST:g} can be worked with")
    return weight


def _finish_linear(
    source: ModelFolder, job: Job, pruned: Stored | None, stats: Stats | None
) -> tuple[Stored, dict[str, Any]]:
    """Quantize a linear if its job says so, and record how far the result is from the original.

    pruned: the pruned weight (rows, columns), already quantized if pruning did both; None without pruning.
    Returns the new weight and its record: error, zeros, odd groups.
    """
    linear, record = job.linear, {}
    if job.kept:
        weight = source.read_packed(linear.name)
        return weight, {"grid": str(job.grid), "error": 0.0, "kept": True} | check.inspect(linear.name, weight)
    joint = isinstance(pruned, QuantizedWeight)
    # Without statistics, rows are independent. The head of a large model is then read and quantized in parts, which
    # needs less memory.
    height = linear.rows if job.needs or pruned is not None else max(1, AT_ONCE // linear.columns)
    parts, error, size, odd_groups = [], 0.0, 0.0, Counter()
    for first in range(0, linear.rows, height):
        original = read_linear(source, linear, slice(first, first + height))
        weight = original if pruned is None else pruned
        if job.grid and not joint:
            weight = _quantize(job, weight, stats)
        dense = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
        error += energy(original - dense, stats)
        size += energy(original, stats)
        if isinstance(weight, QuantizedWeight):
            odd_groups.update(check.inspect(linear.name, weight))
        if pruned is not None:
            job.pattern.check(dense)
            record |= {"pattern": str(job.pattern), "zeros": round(float((dense == 0).float().mean()), 6)}
        parts.append(weight)
    weight = QuantizedWeight.stack(parts) if job.grid else parts[0]
    record = ({"grid": str(job.grid)} if job.grid else {}) | {"error": round(error / max(size, 1e-30), 8)} | record
    return weight, record | dict(odd_groups)


def _quantize(job: Job, weight: torch.Tensor, stats: Stats | None) -> QuantizedWeight:
    """Quantize one weight and check the result.

    Raises JettisonError if a zero of a pruned weight became nonzero, UsageError for a result that no checkpoint can
    store.
    """
    linear, method = job.linear, registry.find("quantize", job.step.method)
    try:
        quantized = method.function(weight, job.grid, stats, **job.step.options)
    except JettisonError as error:
        raise type(error)(f"{linear.name}: {error}") from error
    check_quantized(linear, method.name, quantized)
    if job.prune and (filled := int((quantized.dequantize()[weight == 0] != 0).sum())):
        raise JettisonError(f"{linear.name}: {method.name} made {filled} of the zeros that pruning left nonzero")
    return quantized


def check_quantized(linear: Linear, method: str, weight: QuantizedWeight) -> None:
    """Raise JettisonError for scales that are not finite, UsageError for zero points that no checkpoint can store."""
    if not torch.isfinite(weight.scale).all():
        raise JettisonError(f"{linear.name}: {method} gave scales that are not finite")
    if weight.zero is not None and weight.zero.is_floating_point() and not weight.grid.minimum:
        raise UsageError(f"{linear.name}: {method} gave fractional zero points, which no checkpoint can store")


def energy(matrix: torch.Tensor, stats: Stats | None) -> float:
    """Return the mean of ‖matrix x‖² over the calibration inputs x, or ‖matrix‖² without ``stats``.

    matrix: (rows, columns). The mean is computed from the second moments H of x, as the sum of matrix * (matrix H).
    """
    return float((matrix * (matrix @ stats.hessian if stats else matrix)).sum(dtype=torch.float64))


def apply_to_block(
    source: ModelFolder, step: Step, jobs: list[Job], stats_of: Mapping[Linear, Stats | None], applied: Applied
) -> None:
    """Run a quantize step whose method sees all its linears of a block together, and apply the edits it returns.

    jobs: of this step in one block, or outside the blocks.
    stats_of: linear -> calibration statistics; None without any.
    applied: receives the new weights, records and changed parameters.
    """
    linears = [job.linear for job in jobs]
    block, anatomy = linears[0].block, source.anatomy
    path, block_linears = ("", []) if block is None else (anatomy.path(block), anatomy.of_block(block))
    config = source.config.get_text_config()
    query_heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or query_heads
    heads = (query_heads, kv_heads) if isinstance(query_heads, int) and isinstance(kv_heads, int) else None
    view = BlockView(
        linears,
        list(find_folds(anatomy.family, path, block_linears, linears, source.has, heads)),
        lambda linear: read_linear(source, linear),
        source.read,
    )
    stats = {linear.inputs: stats_of[linear] for linear in linears}
    method = registry.find("quantize", step.method)
    try:
        edits = method.function(view, {job.linear: job.grid for job in jobs}, stats, **step.options)
    except JettisonError as error:
        raise type(error)(f"{path or 'outside the blocks'}: {error}") from error
    scales: dict[str, list[Scale]] = defaultdict(list)
    new_weights = {}
    for edit in edits:
        if isinstance(edit, Scale):
            scales[edit.name].append(edit)
        elif isinstance(edit, Put):
            new_weights[edit.name] = edit.weight
    own = {f"{linear.name}.weight" for linear in linears}  # their ``Put`` already includes the scales
    for name in scales.keys() - own:
        value = source.read(name).float()
        for edit in scales[name]:
            value = edit.of(value)
        applied.changed[name] = value
    for job in jobs:
        weight = new_weights[job.linear.name]
        check_quantized(job.linear, step.method, weight)
        record = _record(source, job, weight, scales[f"{job.linear.name}.weight"], stats_of[job.linear])
        applied.weights[job.linear], applied.records[job.linear.name] = weight, record


def _record(
    source: ModelFolder, job: Job, weight: QuantizedWeight, scales: list[Scale], stats: Stats | None
) -> dict[str, Any]:
    """Record the error of a quantized matrix against the original with the same scales.

    A factor on the columns divides their inputs, so the statistics are divided accordingly.
    """
    original, divisors = read_linear(source, job.linear), torch.ones(job.linear.columns)
    for edit in scales:
        original = edit.of(original)
        divisors = divisors * edit.factor if edit.axis == 1 else divisors
    scaled = Stats(stats.hessian / divisors / divisors.unsqueeze(1)) if stats else None
    error = energy(original - weight.dequantize(), scaled) / max(energy(original, scaled), 1e-30)
    return {"grid": str(job.grid), "error": round(error, 8)} | check.inspect(job.linear.name, weight)
