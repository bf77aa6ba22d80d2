"""Plan the depth of an image classifier: from a latency or frames per second to a recipe with one step, ``depth``.

``plan_latency`` plans for any kind of model that has such a budget.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError
from jettison.core.numbers import figures
from jettison.graph.folder import ModelFolder
from jettison.planning.bits import plan_bits
from jettison.planning.budget import check_budget, parse_latency
from jettison.planning.measured import kept_milliseconds
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.recipe.registry import default_method, find

MEASURED = ".original.json"  # in the folder of a run: the latency of the original, when the run began
HELD_OUT = 0.1  # of the images, at most: they are not trained on


def plan_latency(model: str | Path | ModelFolder, **options: Any) -> Recipe:
    """Plan for a latency or frames per second: the depth of an image classifier, the bits of a perception model.

    options: those of ``plan_depth``; images are not needed for bits.
    """
    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    if source.anatomy.family.domain == "perception":
        return plan_bits(source, **{name: value for name, value in options.items() if name != "images"})
    return plan_depth(source, **options)


def plan_depth(
    model: str | Path | ModelFolder, *, latency: str | float | None = None, fps: float | None = None,
    changes: Iterable[str] = (), images: str | Path | None = None, folder: Path | None = None,
) -> Recipe:  # fmt: skip
    """Plan a recipe whose only step prunes depth, by the default method; its ``why`` holds the reasons.

    latency: to reach, as a share of the original's, such as 0.7 or "0.7x".
    fps: instead, images per second to reach, one by one. The original is measured to make this a share.
    changes: of the recipe, ``verb.option=value``.
    images: to train on; only their number is read.
    folder: of the run: the measurement is kept there, so that a killed run continues with the same recipe.

    Returns a recipe without steps if the original meets the budget. Raises UsageError as ``check_budget``, and
    for changes that are not valid or of a method that reaches no latency.
    """
    from jettison.graph.residual import find_residuals

    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    check_budget(source, {"latency": latency, "fps": fps})
    share, method = None if latency is None else parse_latency(latency), default_method("depth")
    find_residuals(source.new_skeleton(), source.anatomy)  # raises for a model whose depth cannot be pruned
    why = []
    if share is None:
        own = kept_milliseconds(source, folder / MEASURED if folder else None, lambda: _measure(source))
        share = 1000 / fps / own
        why.append(
            f"the original takes {figures(own)} ms for one image on this machine, or {figures(1000 / own)} images/s"
        )
        if share >= 1:
            return Recipe("unchanged", steps=(), use="The original is fast enough.", why=tuple(why))
        share = max(int(share * 10_000), 1) / 10_000  # rounded down
        why.append(f"{fps:g} images/s leave {figures(1000 / fps)} ms: {share:g} of the original's latency")
    else:
        why.append(f"{share:g} of the original's latency is asked for, on this machine")
    chosen = find("depth", method)
    why.append(f"fewer layers are faster in every runtime: depth is pruned by {method}")
    options: dict[str, Any] = {"method": method, "latency": share}
    if images is not None and (count := _trained_on(images)) < chosen.defaults["batch"]:
        options["batch"] = max(2, count)
        why.append(f"the images are few, so a step of training takes {options['batch']} of them")
    recipe = load_recipe(
        {"name": "depth", "use": "Planned for this budget.", "why": why, "steps": [{"depth": options}]}, changes
    )
    for step in recipe.of("depth"):
        if step.options.get("latency") is None:
            raise UsageError(
                f"depth method {step.method!r} does not search for a latency, so it suits no budget: give it in a "
                "recipe, with --recipe"
            )
    return recipe


def _measure(source: ModelFolder) -> float:
    """Return the milliseconds of the original for one image."""
    from jettison.pipeline.depth import original_ms

    return round(original_ms(source), 4)


def _trained_on(images: str | Path) -> int:
    """Return how many images a training can use at least."""
    from jettison.pipeline.trial import count_images

    return int(count_images(images, None) * (1 - HELD_OUT))
