"""Skip blocks at random: what every other choice must beat."""

from jettison.domains.diffusion.task import Programs, ProgramTask
from jettison.recipe.registry import program_finder


@program_finder("random")
def random(task: ProgramTask) -> Programs:
    """Skip blocks at random steps, as many as are asked for. The choice depends on the seed."""
    return task.random().program
