"""Plan a faster diffusion pipeline: from a speedup to a recipe with one step, ``program``."""

from collections.abc import Iterable
from pathlib import Path

from jettison.core.errors import UsageError
from jettison.graph.folder import ModelFolder
from jettison.planning.budget import check_budget, parse_speedup
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.recipe.registry import default_method


def plan_program(model: str | Path | ModelFolder, *, speedup: str | float, changes: Iterable[str] = ()) -> Recipe:
    """Plan a recipe whose only step finds a program, by the default method; its ``why`` holds the reasons.

    speedup: how many times as fast a run must be, measured on this machine, such as 2.5.
    changes: of the recipe, ``verb.option=value``.

    Only the config and the scheduler are read. Raises UsageError as ``check_budget``, for a speedup of at least the
    number of calls of the denoiser, of which the first is always computed, and for changes that are not valid.
    """
    from jettison.pipeline.program import check_program, count_calls

    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    check_budget(source, {"speedup": speedup})
    times = parse_speedup(speedup)
    method = default_method("program")
    why = [
        f"{times:g} times as fast is asked for: {1 - 1 / times:.0%} of the FLOPs of a run must be skipped, and more "
        "where skipping them saves less time, measured on this machine",
        f"a program skips blocks at some steps of the sampler, and leaves the weights as they are: found by {method}",
    ]
    recipe = load_recipe(
        {
            "name": "program", "use": "Planned for this budget.", "why": why,
            "steps": [{"program": {"method": method, "speedup": times}}],
        },
        changes,
    )  # fmt: skip
    check_program(source, recipe)
    for step in recipe.of("program"):
        asked, calls = step.run.speedup, count_calls(source, step)
        if asked is not None and asked >= calls:
            raise UsageError(
                f"speedup = {asked:g}: a run calls the denoiser {calls} times, and the first call is always computed: "
                f"ask for less than {calls}, or for more steps (--set program.steps=...)"
            )
    return recipe
