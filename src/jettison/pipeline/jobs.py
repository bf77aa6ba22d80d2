"""Assign the steps of a recipe to the linears of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jettison.core.errors import UsageError, unknown
from jettison.domains.domain import find_domain
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.pattern import Pattern
from jettison.formats.format import choose_format, find_format
from jettison.formats.runtimes import Runtime, find_runtime, fitted_grids, illegal
from jettison.formats.tied import one_matrix
from jettison.formats.writer import Writer
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.recipe import registry
from jettison.recipe.recipe import Recipe, Step


@dataclass(frozen=True)
class Job:
    """One linear and the steps that are applied to it: first ``prune``, then ``step``, the quantize step.

    prune, step: None if the linear is not pruned, or not quantized.
    grid: has a group size that fits the linear's rows and the type in which its scales are stored; ``step.grid`` is
    the grid as the recipe asks for it.
    pattern: of the pruning; its sparsity is final once sparsity has been allocated.
    kept: the source has the linear packed on ``grid``, and it stays so; there are no steps.
    tied: the linear is an embedding that shares the codes of the head; there is nothing to do for it.
    """

    linear: Linear
    step: Step | None = None
    grid: Grid | None = None
    prune: Step | None = None
    pattern: Pattern | None = None
    kept: bool = False
    tied: bool = False

    @property
    def steps(self) -> list[Step]:
        """Return the steps in the order in which they are applied."""
        return [step for step in (self.prune, self.step) if step]

    @property
    def quantizer(self) -> registry.Method:
        """Return the method of the quantize step."""
        return registry.find("quantize", self.step.method)

    @property
    def adaptive(self) -> bool:
        """Return whether the linear's sparsity depends on the calibration text."""
        return self.prune is not None and self.prune.allocation.kind != "uniform"

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of the calibration statistics that the methods need."""
        return frozenset().union(
            *(registry.find(step.verb, step.method).needs_with(step.options) for step in self.steps)
        )


def assign(source: ModelFolder, recipe: Recipe, runtime: str | None = None) -> list[Job]:
    """Return a job for every linear that a prune or quantize step claims, in the order of the model.

    Where a group size does not fit the rows, the next smaller one that fits is used (see ``runtimes.fitted``).

    Raises UsageError if two steps of a verb claim one linear, a step claims no linear or a block that does not exist,
    an N:M does not divide the rows, parts of a matrix that runtimes fuse get different grids, the named runtime would
    not load the result, or windows of text are longer than the model has positions for.
    """
    target = None if runtime is None else find_runtime(runtime)
    shared, head = one_matrix(source.anatomy, recipe, target), source.anatomy.head
    for step in recipe.steps:
        _claimed(source, step)  # raises for steps that fit nothing, recover steps too
    jobs: dict[Linear, Job] = {}
    for step in recipe.of("prune"):
        for linear in _claimed(source, step):
            if linear in jobs:
                raise UsageError(f"two steps claim {linear.name}: «{jobs[linear].prune}» and «{step}»")
            _check_pruning(source, linear, step)
            jobs[linear] = Job(linear, prune=step, pattern=step.pattern)
    for step in recipe.of("quantize"):
        claimed = _claimed(source, step)
        if shared and head in claimed:
            claimed = list(dict.fromkeys([source.anatomy.linears[0], *claimed]))
        if registry.find("quantize", step.method).scope == "block" and not source.anatomy.family.folds:
            raise UsageError(
                f"{step.method} scales the inputs of linears, but families.yaml does not say where that is possible in "
                f"{source.anatomy.family.name} models (folds)"
            )
        grids = fitted_grids(claimed, step.grid, target)
        for linear in claimed:
            job = jobs.get(linear, Job(linear))
            if job.step:
                raise UsageError(f"two steps claim {linear.name}: «{job.step}» and «{step}»")
            tied = shared and "embed" in linear.roles
            if "embed" in linear.roles and not tied and registry.find("quantize", step.method).needs:
                fit = registry.having("quantize", lambda method: not method.needs)
                raise UsageError(f"{linear.name} is looked up, not multiplied: {fit} fit it, {step.method} does not")
            grid = grids[head] if tied else grids[linear]
            jobs[linear] = replace(job, step=step, grid=stored_grid(source, linear, grid), tied=tied)
    for job in jobs.values():
        _check_together(source, job)
    check_fused(source.anatomy, jobs)
    if target is not None:
        _check_runtime(target, source, jobs)
    calibrated = any(job.needs or job.adaptive for job in jobs.values())
    find_domain(source).check_recipe(source, recipe, calibrated)
    return [jobs[linear] for linear in source.anatomy if linear in jobs]


def check_fused(linears: Iterable[Linear], jobs: Mapping[Linear, Job]) -> None:
    """Raise UsageError if parts of a matrix that runtimes fuse get different grids. linears: of the model."""
    parts: dict[str, Linear] = {}
    for linear in linears:
        other = parts.setdefault(linear.fused, linear)
        grids = [str(jobs[part].grid) if part in jobs else "None" for part in (other, linear)]
        if grids[0] != grids[1]:
            raise UsageError(
                f"runtimes run {linear.fused} as one matrix, so its parts share a grid; this recipe gives "
                f"{other.name} {grids[0].lower()} and {linear.name} {grids[1].lower()}"
            )


def pick_format(source: ModelFolder, jobs: Iterable[Job], runtime: str | None = None, name: str | None = None) -> str:
    """Return the name of the format to write: ``name``, or the first that can hold the result and that the runtime
    loads.

    Raises UsageError if that format cannot hold the result, or the runtime does not load it.
    """
    grids = {job.linear.name: job.grid for job in jobs if job.grid}
    loadable = [format.name for format in find_runtime(runtime).formats if format.written] if runtime else []
    chosen = name or choose_format(source.anatomy, grids, loadable)
    if reasons := find_format(chosen).refuses(source.anatomy, grids):
        raise UsageError("; ".join(reasons))
    if runtime and chosen not in loadable:
        raise unknown("format", chosen, loadable, f" for runtime {runtime}")
    return chosen


def open_writer(
    source: ModelFolder, jobs: Iterable[Job], runtime: str | None = None, name: str | None = None
) -> Writer:
    """Return a writer of the result, in the format that ``pick_format`` chooses."""
    jobs = list(jobs)
    return Writer(source, pick_format(source, jobs, runtime, name), tied=any(job.tied for job in jobs))


def adjusted(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs whose group size differs from the one that their step asks for."""
    return [job for job in jobs if job.step and job.grid and job.grid.group_size != job.step.grid.group_size]


def say_adjusted(jobs: Iterable[Job]) -> str:
    """Describe in one line the group sizes that were ``adjusted``; "" if none was."""
    # (group size of the step, columns, group size used) -> number of linears
    counts = Counter((job.step.grid.group_size, job.linear.columns, job.grid.group_size) for job in adjusted(jobs))
    groups = lambda size: "one group per row" if size == WHOLE_ROW else f"groups of {size}"
    matrices = lambda count: f"{count} {'matrix' if count == 1 else 'matrices'}"
    return "; ".join(
        f"group_size {asked} does not fit rows of {columns} weights: {groups(used)} instead in {matrices(count)}"
        for (asked, columns, used), count in sorted(counts.items())
    )


def say_tied(source: ModelFolder, recipe: Recipe, runtime: str | None) -> str:
    """Return the note that a tied embedding stays in 16 bits because of the runtime; "" where that is not so."""
    head = source.anatomy.head
    if runtime is None or not source.anatomy.tied or head is None or (target := find_runtime(runtime)).format.tied:
        return ""
    if not any(step.claims(head.roles, None) for step in recipe.of("quantize")):
        return ""
    return (
        f"{target.title} reads no packed matrix that is both head and embedding: the embedding is stored in 16 bits, "
        "beside the packed head"
    )


def _claimed(source: ModelFolder, step: Step) -> list[Linear]:
    """Return the linears that a step claims. Raises UsageError if there are none, or a block does not exist."""
    blocks = source.anatomy.blocks
    if beyond := [block for block in step.where.blocks if block >= blocks]:
        raise UsageError(f"block {beyond[0]} of «{step}»: {source.name} has blocks 0 to {blocks - 1}")
    claimed = [linear for linear in source.anatomy if step.claims(linear.roles, linear.block)]
    if not claimed:
        present = sorted({role for linear in source.anatomy for role in linear.roles})
        raise UsageError(f"«{step}» fits nothing in {source.name}, whose roles are {', '.join(present)}")
    return claimed


def _check_pruning(source: ModelFolder, linear: Linear, step: Step) -> None:
    """Raise UsageError if the prune step cannot be applied to the linear."""
    if step.allocation.kind == "sensitivity" and not source.anatomy.family.chain:
        raise UsageError(
            f"allocation = 'sensitivity': sensitivity is measured on language models; {source.name} is none"
        )
    if "embed" in linear.roles:
        raise UsageError(f"{linear.name} is looked up, not multiplied: it is not pruned")
    try:
        step.pattern.check_columns(linear.columns)
    except UsageError as error:
        raise UsageError(f"{linear.name}: {error}") from None


def _check_together(source: ModelFolder, job: Job) -> None:
    """Raise UsageError if the prune step and the quantize step of a linear cannot be combined."""
    if job.prune and job.prune.options.get("joint") and not (job.step and "joint" in job.quantizer.traits):
        present, able = f"is «{job.step}»" if job.step else "is missing", registry.having("quantize", _can_join)
        raise UsageError(
            f"{job.linear.name}: joint: true needs a quantize step with {able} for the same linear; that {present}"
        )
    if job.prune and job.step and job.quantizer.scope == "block":
        raise UsageError(
            f"{job.linear.name}: {job.step.method} scales weights, so it cannot quantize a linear that is pruned"
        )
    stacked = source.locate(f"{job.linear.name}.weight")[1] is not None
    if stacked and not job.step:
        raise UsageError(
            f"{job.linear.name} lies in one tensor with other experts, of which none can be stored alone: "
            "quantize it too, or leave experts out of the prune step"
        )


def _can_join(method: registry.Method) -> bool:
    return "joint" in method.traits


def _check_runtime(runtime: Runtime, source: ModelFolder, jobs: Mapping[Linear, Job]) -> None:
    """Raise UsageError if the runtime would not load the result."""
    if runtime.name != "jettison":
        source.require_own_modules(f"{runtime.title} would not load this, only jettison.load does")
    grids = {linear.name: job.grid for linear, job in jobs.items() if job.grid}
    written = [format.name for format in runtime.formats if format.written]
    format = choose_format(source.anatomy, grids, written) if written else None
    reasons = illegal(runtime, source.anatomy, grids, format)
    if runtime.no_writer or reasons:
        raise UsageError("; ".join([runtime.no_writer or f"{runtime.title} would not load this", *reasons]))


def stored_grid(source: ModelFolder, linear: Linear, grid: Grid) -> Grid:
    """Set the type of the stored scales: the model's own 16-bit type, or bfloat16 for a float32 model."""
    tensor, _, _ = source.locate(f"{linear.name}.weight")
    return replace(grid, scale_type="float16" if source.checkpoint.dtype(tensor) == "F16" else "bfloat16")
