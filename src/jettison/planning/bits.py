"""Plan the bits of a perception model: from a latency or frames per second to the preset that loses least.

Its depth cannot be pruned, since that trains on classes. So the presets are tried on this machine, most bits first.
"""

from collections.abc import Iterable
from pathlib import Path

from jettison.core.errors import UsageError
from jettison.core.numbers import figures
from jettison.graph.folder import ModelFolder
from jettison.planning.budget import check_budget, parse_latency
from jettison.planning.measured import kept_milliseconds
from jettison.recipe.recipe import Recipe, load_recipe

TRIED = ("w8", "w4")  # presets, from the least loss
MEASURED = ".latencies.json"  # in the folder of a run: what was measured when the run began


def plan_bits(
    source: ModelFolder,
    *,
    latency: str | float | None = None,
    fps: float | None = None,
    changes: Iterable[str] = (),
    folder: Path | None = None,
) -> Recipe:
    """Plan the first preset of ``TRIED`` that meets a budget; its ``why`` holds the reasons.

    latency: to reach, as a share of the original's, such as 0.7 or "0.7x". fps: instead, frames per second.
    changes: of the recipe, ``verb.option=value``.
    folder: of the run: the times are kept there, so that a killed run continues with the same recipe.
    Returns a recipe without steps if the original meets the budget. Raises UsageError as ``check_budget``, for changes
    that are not valid, and if no preset is fast enough.
    """
    check_budget(source, {"latency": latency, "fps": fps})
    for name in TRIED:
        load_recipe(name, changes)  # raises before anything is measured
    times = kept_milliseconds(source, folder / MEASURED if folder else None, lambda: _measure(source))
    own = times["original"]
    most = own * parse_latency(latency) if latency is not None else 1000 / fps
    why = [f"{name} takes {figures(ms)} ms for one frame on this machine" for name, ms in times.items()]
    why.append(f"the budget is {figures(most)} ms")
    if own <= most:
        return Recipe("unchanged", steps=(), use="The original is fast enough.", why=tuple(why))
    for name in TRIED:
        if times[name] <= most:
            recipe = load_recipe(name, changes)
            return load_recipe({**recipe.to_dict(), "use": "Planned for this budget.", "why": why})
    raise UsageError(f"no preset is fast enough: {'; '.join(why)}. Set a larger budget, or choose a smaller model")


def _measure(source: ModelFolder) -> dict[str, float]:
    """Return the milliseconds of the original and of every preset."""
    from jettison.pipeline.preset_times import preset_times  # torch takes seconds to import

    return preset_times(source, TRIED)
