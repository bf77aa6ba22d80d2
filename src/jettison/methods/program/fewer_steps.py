"""Fewer steps of the sampler: what every program must beat."""

from jettison.domains.diffusion.task import Programs, ProgramTask, nearest
from jettison.recipe.registry import program_finder


@program_finder("fewer_steps", traits=("rival",))
def fewer_steps(task: ProgramTask) -> Programs:
    """Run fewer steps of the sampler, all computed as a whole.

    The number of steps is the one whose cost is nearest to what is asked for. The program is for that number.
    """
    programs = [task.fewer(steps) for steps in range(1, task.steps + 1)]
    return lambda ratio: nearest(programs, ratio)
