"""DiP-GO: learn by gradient steps which computations of a run matter, and drop the others."""

from typing import Annotated, Literal

from pydantic import Field

from jettison.domains.diffusion.search import SearchOptions
from jettison.domains.diffusion.task import Programs, ProgramTask
from jettison.recipe.registry import program_finder


@program_finder("dip_go", paper="arXiv:2410.16942")
def dip_go(
    task: ProgramTask,
    *,
    search_steps: Annotated[int, Field(ge=1)] = 1000,
    batch: Annotated[int, Field(ge=1)] = 1,
    rate: Annotated[float, Field(gt=0)] | None = None,
    alpha: Annotated[float, Field(ge=0)] = 1.0,
    tau: Annotated[float, Field(ge=0, le=1)] = 0.2,
    likeness: Literal["ssim", "l1", "l2"] = "ssim",
    weighted: bool = True,
    reuse: Literal["output", "residual"] = "output",
    encoder: Literal["attention", "linear", "released"] = "attention",
    width: Annotated[int, Field(ge=1)] = 512,
    how: Literal["bisection", "published"] = "bisection",
    checkpointing: bool = True,
) -> Programs:
    """Learn a score for every block at every step, then skip the lowest (DiP-GO).

    search_steps, batch: of the training of the scores, and samples in each.
    rate: of SGD; by default that of the paper, scaled to the number of gates.
    alpha: weight of the sparsity term.
    tau: the share of a run's FLOPs below which that term is dropped.
    likeness: what makes the result like the full run's.
    weighted: weight each gate by the FLOPs that closing it saves.
    reuse: what a skipped block reuses: its ``output``; or its ``residual``, added to the new input, for transformers.
    encoder, width: of the network that gives the scores.
    how: the scores are cut at one threshold, found by bisection, or as in the published code.
    checkpointing: recompute each call of the denoiser in the backward pass, which needs far less memory.

    Raises UsageError for a denoiser whose blocks have no residual, if residuals are to be reused.
    Source: arXiv:2410.16942; ``published`` is the released code's. Residuals, and how rates are scaled, are ours.
    """
    options = SearchOptions(
        steps=search_steps, batch=batch, rate=rate, alpha=alpha, tau=tau, likeness=likeness, weighted=weighted,
        reuse=reuse, width=width, encoder=encoder, checkpointing=checkpointing, seed=task.seed,
    )  # fmt: skip
    result = task.search(options)
    return lambda ratio: result.program(ratio, how)
