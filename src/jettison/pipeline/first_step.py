"""What the steps have in common that run on the whole original, before all others: depth and program.

Such a step has a folder of its own in the run's folder, with a journal; a killed run continues.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jettison.core.errors import UsageError
from jettison.recipe.recipe import Recipe, Step

JOURNAL = "journal.jsonl"


def first_step(recipe: Recipe, verb: str) -> Step | None:
    """Return the step of a recipe that has this verb; None if there is none.

    Raises UsageError if there are several, if it is not the first step, or if it names a part of the model.
    """
    steps = recipe.of(verb)
    if not steps:
        return None
    if len(steps) > 1 or recipe.steps[0] is not steps[0]:
        raise UsageError(f"«{steps[-1]}»: a recipe has at most one {verb} step, and it comes first")
    if steps[0].where.role or steps[0].where.blocks:
        raise UsageError(f"«{steps[0]}»: a {verb} step chooses its blocks itself; leave out 'where'")
    return steps[0]


@contextmanager
def undone_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that begins here and is refused by a UsageError."""
    fresh = not folder.exists()
    try:
        yield
    except UsageError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_states(folder: Path) -> None:
    """Remove the states of the trainings of a finished run."""
    for state in folder.glob("*.safetensors"):
        state.unlink()
