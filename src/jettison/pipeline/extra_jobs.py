"""Assign quantize steps with the option ``mtp`` to blocks for multi-token prediction, which a checkpoint may have."""

from collections.abc import Iterable
from dataclasses import replace

from jettison.core.errors import UsageError
from jettison.formats.runtimes import find_runtime, fitted_grids
from jettison.graph.anatomy import Linear
from jettison.graph.extra import extra_linears, extra_matrices
from jettison.graph.folder import ModelFolder
from jettison.pipeline.jobs import Job, check_fused, stored_grid
from jettison.recipe import registry
from jettison.recipe.recipe import Recipe, Step


def assign_extra(source: ModelFolder, recipe: Recipe, runtime: str | None = None) -> list[Job]:
    """Return a job for every linear of the blocks for multi-token prediction that a step with ``mtp`` claims by role.

    The model does not run these blocks, so no calibration data reaches them: a method that needs data is replaced.
    Raises UsageError if there is no such linear, two steps give one linear different grids, or parts of a matrix that
    runtimes fuse get different grids.
    """
    steps = [step for step in recipe.of("quantize") if step.mtp]
    if not steps:
        return []
    target, linears = None if runtime is None else find_runtime(runtime), extra_linears(source)
    jobs: dict[Linear, Job] = {}
    for step in steps:
        claimed = [linear for linear in linears if step.where.in_any_block().matches(linear.roles, None)]
        grids = fitted_grids(claimed, step.mtp, target)
        for linear in claimed:
            job = Job(linear, without_data(step), stored_grid(source, linear, grids[linear]))
            other = jobs.setdefault(linear, job)
            if other.grid != job.grid:
                raise UsageError(f"two steps claim {linear.name}: mtp gives it {other.grid} and {job.grid}")
    if not jobs:
        what = "matrices of these roles in blocks" if linears else "blocks"
        raise UsageError(f"mtp = {steps[0].mtp.bits}: {source.name} has no {what} for multi-token prediction")
    check_fused(linears, jobs)
    return list(jobs.values())


def without_data(step: Step) -> Step:
    """Return a step to the grid ``mtp``, by its method or, if that needs data, by the default one that does not."""
    method = registry.find("quantize", step.method)
    if method.needs_with(step.options) or method.scope != "linear":
        method = registry.find("quantize", registry.default_method("quantize_at_once"))
        return replace(step, method=method.name, options=method.check({}), grid=step.mtp)
    return replace(step, grid=step.mtp)


def say_extra(source: ModelFolder, jobs: Iterable[Job]) -> str:
    """Describe in one line what happens to blocks for multi-token prediction; "" if there are none.

    jobs: of these blocks.
    """
    if jobs := list(jobs):
        made = " and ".join(sorted({f"{job.grid} ({job.step.method})" for job in jobs}))
        count = f"{len(jobs)} {'matrix' if len(jobs) == 1 else 'matrices'}"
        return f"{count} of blocks for multi-token prediction become {made}: no calibration data reaches them"
    if left := len(extra_matrices(source)):
        return f"blocks for multi-token prediction stay as they are ({left} matrices); quantize.mtp=8 rounds them"
    return ""
