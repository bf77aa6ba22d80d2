"""Uniform caching: compute every k-th call of the denoiser as a whole, and reuse outputs in between."""

from typing import Annotated

from pydantic import Field

from jettison.domains.diffusion.task import Programs, ProgramTask, nearest
from jettison.recipe.registry import program_finder


@program_finder("interval", paper="arXiv:2312.00858", traits=("rival",))
def interval(task: ProgramTask, *, shallow: Annotated[int, Field(ge=0)] = 0) -> Programs:
    """Compute calls of the denoiser at even distances, and reuse the outputs of all blocks in between.

    shallow: the number of outermost blocks of a UNet, on each side, that are always computed, as DeepCache does.

    The number of computed calls is the one whose cost is nearest to what is asked for. Where it divides that of all
    calls, this is the interval k of DeepCache and FORA (arXiv:2407.01425); distances that differ by 1 are ours.
    Raises UsageError for shallow blocks of a denoiser that is no UNet.
    """
    programs = [task.every(computed, shallow) for computed in range(1, task.run.calls + 1)]
    return lambda ratio: nearest(programs, ratio)
