"""Which linear gets which steps of a recipe, and what they make of it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jettison.core.errors import UsageError, unknown
from jettison.domains.domain import find_domain
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.pattern import Pattern
from jettison.formats.format import choose_format, find_format
from jettison.formats.runtimes import Runtime, find_runtime, fitted_grids, illegal
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.recipe import registry
from jettison.recipe.recipe import Recipe, Step


@dataclass(frozen=True)
class Job:
    """One linear and what is done to it, first ``prune``, then ``step``, which quantizes: None where it is not done.

    grid: with a group size that its rows can have, and the type in which its scales are stored; that of ``step`` is as
    wished. pattern: of the pruning, once sparsity has been allocated.
    """

    linear: Linear
    step: Step | None = None
    grid: Grid | None = None
    prune: Step | None = None
    pattern: Pattern | None = None

    @property
    def steps(self) -> list[Step]:
        return [step for step in (self.prune, self.step) if step]

    @property
    def quantizer(self) -> registry.Method:
        return registry.find("quantize", self.step.method)

    @property
    def adaptive(self) -> bool:
        """Whether its sparsity depends on the calibration text."""
        return self.prune is not None and self.prune.allocation.kind != "uniform"

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that its methods want."""
        return frozenset().union(
            *(registry.find(step.verb, step.method).needs_with(step.options) for step in self.steps)
        )


def assign(source: ModelFolder, recipe: Recipe, runtime: str | None = None) -> list[Job]:
    """The linears that the prune and quantize steps claim. Where a group size does not fit, the next smaller one that
    does is taken (see ``runtimes.fitted``).

    Raises UsageError if two steps of a verb claim one linear, a step claims nothing or a block that is not there, an
    N:M does not divide, parts of what runtimes fuse get different grids, the runtime named would not load the result,
    or windows of text are longer than the model has positions for.
    """
    target = None if runtime is None else find_runtime(runtime)
    for step in recipe.steps:
        _claimed(source, step)
    jobs: dict[Linear, Job] = {}
    for step in recipe.of("prune"):
        for linear in _claimed(source, step):
            if linear in jobs:
                raise UsageError(f"two steps claim {linear.name}: «{jobs[linear].prune}» and «{step}»")
            _check_pruning(source, linear, step)
            jobs[linear] = Job(linear, prune=step, pattern=step.pattern)
    for step in recipe.of("quantize"):
        claimed = _claimed(source, step)
        if registry.find("quantize", step.method).scope == "block" and not source.anatomy.family.folds:
            raise UsageError(
                f"{step.method} scales the inputs of linears: where, families.yaml does not say for "
                f"{source.anatomy.family.name} models (folds)"
            )
        grids = fitted_grids(claimed, step.grid, target)
        for linear in claimed:
            job = jobs.get(linear, Job(linear))
            if job.step:
                raise UsageError(f"two steps claim {linear.name}: «{job.step}» and «{step}»")
            if "embed" in linear.roles and registry.find("quantize", step.method).needs:
                fit = registry.having("quantize", lambda method: not method.needs)
                raise UsageError(f"{linear.name} is looked up, not multiplied: {fit} fit it, {step.method} does not")
            jobs[linear] = replace(job, step=step, grid=_stored_grid(source, linear, grids[linear]))
    for job in jobs.values():
        _check_together(source, job)
    parts: dict[str, Linear] = {}
    for linear in source.anatomy:
        other = parts.setdefault(linear.fused, linear)
        grids = [str(jobs[part].grid) if part in jobs else "None" for part in (other, linear)]
        if grids[0] != grids[1]:
            raise UsageError(
                f"runtimes run {linear.fused} as one matrix, so its parts share a grid; this recipe gives "
                f"{other.name} {grids[0].lower()} and {linear.name} {grids[1].lower()}"
            )
    if target is not None:
        _check_runtime(target, source, jobs)
    calibrated = any(job.needs or job.adaptive for job in jobs.values())
    find_domain(source).check_recipe(source, recipe, calibrated)
    return [jobs[linear] for linear in source.anatomy if linear in jobs]


def pick_format(source: ModelFolder, jobs: Iterable[Job], runtime: str | None = None, name: str | None = None) -> str:
    """The name of the format to write: the first that can hold what the jobs make and that the runtime loads, or
    ``name``. Raises UsageError if that one cannot."""
    grids = {job.linear.name: job.grid for job in jobs if job.grid}
    loaded = [each.name for each in find_runtime(runtime).formats if each.written] if runtime else []
    chosen = name or choose_format(source.anatomy, grids, loaded)
    if reasons := find_format(chosen).refuses(source.anatomy, grids):
        raise UsageError("; ".join(reasons))
    if runtime and chosen not in loaded:
        raise unknown("format", chosen, loaded, f" for runtime {runtime}")
    return chosen


def adjusted(jobs: Iterable[Job]) -> list[Job]:
    """Those that got another group size than their step wished for."""
    return [job for job in jobs if job.grid and job.grid.group_size != job.step.grid.group_size]


def say_adjusted(jobs: Iterable[Job]) -> str:
    """One line about the group sizes that were ``adjusted``; '' if none was."""
    found = Counter((job.step.grid.group_size, job.linear.columns, job.grid.group_size) for job in adjusted(jobs))
    used = lambda size: "one group per row" if size == WHOLE_ROW else f"groups of {size}"
    counted = lambda count: f"{count} {'matrix' if count == 1 else 'matrices'}"
    return "; ".join(
        f"group_size {wish} does not fit rows of {columns} weights: {used(size)} instead in {counted(count)}"
        for (wish, columns, size), count in sorted(found.items())
    )


def _claimed(source: ModelFolder, step: Step) -> list[Linear]:
    blocks = source.anatomy.blocks
    if beyond := [block for block in step.where.blocks if block >= blocks]:
        raise UsageError(f"block {beyond[0]} of «{step}»: {source.name} has blocks 0 to {blocks - 1}")
    claimed = [linear for linear in source.anatomy if step.claims(linear.roles, linear.block)]
    if not claimed:
        present = sorted({role for linear in source.anatomy for role in linear.roles})
        raise UsageError(f"«{step}» fits nothing in {source.name}, whose roles are {', '.join(present)}")
    return claimed


def _check_pruning(source: ModelFolder, linear: Linear, step: Step) -> None:
    if step.allocation.kind == "sensitivity" and not source.anatomy.family.chain:
        raise UsageError(f"allocation = 'sensitivity': it is measured on language models; {source.name} is none")
    if "embed" in linear.roles:
        raise UsageError(f"{linear.name} is looked up, not multiplied: it is not pruned")
    try:
        step.pattern.check_columns(linear.columns)
    except UsageError as error:
        raise UsageError(f"{linear.name}: {error}") from None


def _check_together(source: ModelFolder, job: Job) -> None:
    """Raises UsageError where what is done first and what is done then do not go together."""
    if job.prune and job.prune.options.get("joint") and not (job.step and "joint" in job.quantizer.traits):
        given, able = f"is «{job.step}»" if job.step else "is missing", registry.having("quantize", _can_join)
        raise UsageError(f"{job.linear.name}: joint: true needs a quantize step with {able} for the same; that {given}")
    if job.prune and job.step and job.quantizer.scope == "block":
        raise UsageError(f"{job.linear.name}: {job.step.method} scales weights, and so cannot quantize what is pruned")
    stacked = source.locate(f"{job.linear.name}.weight")[1] is not None
    if stacked and not job.step:
        raise UsageError(
            f"{job.linear.name} lies in one tensor with other experts, of which none can be stored alone: "
            "quantize it too, or leave experts out of the prune step"
        )


def _can_join(method: registry.Method) -> bool:
    return "joint" in method.traits


def _check_runtime(runtime: Runtime, source: ModelFolder, jobs: Mapping[Linear, Job]) -> None:
    grids = {linear.name: job.grid for linear, job in jobs.items() if job.grid}
    written = [format.name for format in runtime.formats if format.written]
    format = choose_format(source.anatomy, grids, written) if written else None
    reasons = illegal(runtime, source.anatomy, grids, format)
    if runtime.no_writer or reasons:
        raise UsageError("; ".join([runtime.no_writer or f"{runtime.title} would not load this", *reasons]))


def _stored_grid(source: ModelFolder, linear: Linear, grid: Grid) -> Grid:
    """Scales are stored in the model's own 16-bit type; bfloat16 for a float32 model."""
    tensor, _, _ = source.locate(f"{linear.name}.weight")
    return replace(grid, scale_type="float16" if source.checkpoint.dtype(tensor) == "F16" else "bfloat16")
