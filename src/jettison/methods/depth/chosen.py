"""Prune given blocks, at once or progressively. At once, this is the baseline of progressive training."""

from typing import Annotated

from pydantic import Field

from jettison.core.errors import UsageError
from jettison.recipe.registry import depth_pruner
from jettison.training.depth import DepthTask, Pruned, fade_out


@depth_pruner("chosen", paper="arXiv:2401.06426")
def chosen(
    task: DepthTask,
    *,
    blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0],  # noqa: B006 (a schema, never changed)
    epochs: Annotated[float, Field(gt=0)] = 10.0,
    fade: Annotated[float, Field(ge=0, le=1)] = 0.0,
    batch: Annotated[int, Field(ge=2)] = 128,
    rate: Annotated[float, Field(gt=0)] = 1e-3,
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5,
    kernel: Annotated[int, Field(ge=-1)] = -1,
) -> Pruned:
    """Prune the blocks that are named: without a search, at once or progressively.

    blocks: the numbers of the blocks, from 0.
    epochs, batch, rate, distill, kernel: see ``updp``.
    fade: the share of the training in which blocks fade out; 0 removes their activations at once.

    Raises UsageError for a block that the model does not have.
    """
    if beyond := [block for block in blocks if block >= len(task.residuals)]:
        raise UsageError(f"block {beyond[0]}: the model has blocks 0 to {len(task.residuals) - 1} that can be pruned")
    return fade_out(
        task, set(blocks), kernel=kernel, epochs=epochs, batch=batch, rate=rate, fade=fade, distill=distill
    )  # fmt: skip
