"""Greedy by output change: skip first what changed least from the step before."""

from typing import Annotated

from pydantic import Field

from jettison.domains.diffusion.task import Programs, ProgramTask
from jettison.recipe.registry import program_finder


@program_finder("greedy")
def greedy(task: ProgramTask, *, runs: Annotated[int, Field(ge=1)] = 8) -> Programs:
    """Score every block at every step by how much its output changes from the step before, then skip the lowest.

    runs: full runs that are watched.
    """
    return task.output_changes(runs).program
