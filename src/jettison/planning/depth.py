"""Plan the depth of an image classifier: from a latency or frames per second to a recipe with one step, ``depth``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError, shown
from jettison.core.kept import read_record, write_record
from jettison.core.numbers import check_number, figures
from jettison.graph.folder import ModelFolder
from jettison.graph.shape import ModelShape
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.recipe.registry import default_method, find

MEASURED = ".original.json"  # in the folder of a run: the latency of the original, when the run began
FASTEST = 1e6  # images per second that may be asked for
HELD_OUT = 0.1  # of the images, at most: they are not trained on


def parse_latency(latency: str | float) -> float:
    """Return a latency as a share of the original's. Raises UsageError if it is not between 0 and 1.

    latency: a number, or a text such as ``0.7`` or ``0.7x``.
    """
    try:
        share = float(latency.strip().removesuffix("x")) if isinstance(latency, str) else float(latency)
    except (TypeError, ValueError):
        share = 0.0
    if not 0 < share < 1:
        raise UsageError(
            f"latency = {shown(latency)}: a share of the original's between 0 and 1 is needed, such as 0.7x"
        )
    return share


def check_depth_budget(
    model: ModelShape, latency: str | float | None, fps: float | None, *, device: str = "this",
    tps: float | None = None, memory: str | float | None = None, recipe: Any = None,
) -> float | None:  # fmt: skip
    """Check the budgets of a plan or a fit, by the kind of the model.

    latency, fps: budgets of an image classifier. tps, memory: those of a language model.
    recipe: the recipe that is given; None if one is to be planned.
    Returns ``latency`` as a share; None if it is not set.
    Raises UsageError for budgets of the wrong kind, for two at once or none, and for values that are not valid.
    """
    share = None if latency is None else parse_latency(latency)
    if fps is not None:
        check_number("fps", fps, 0, FASTEST)
        if fps == 0:
            raise UsageError("fps = 0: a number of images per second above 0 is needed")
    asked = "latency" if latency is not None else "fps"
    if model.anatomy.family.chain:
        if latency is not None or fps is not None:
            raise UsageError(
                f"{asked} is a budget of image classifiers; {model.name} is a language model: give tps or memory"
            )
        return None
    if latency is not None and fps is not None:
        raise UsageError(f"latency = {shown(latency)} and fps = {fps:g}: give one of them")
    if recipe is not None:
        if latency is not None or fps is not None:
            raise UsageError(
                f"{asked} is for a plan, and there is a recipe: let its depth step say it, as --set depth.latency=0.7"
            )
        return None
    if tps is not None or memory is not None:
        name = "tps" if tps is not None else "memory"
        raise UsageError(
            f"{name} is a budget of language models; {model.name} is no language model: give latency or fps, or a "
            "recipe"
        )
    if latency is None and fps is None:
        raise UsageError(
            f"{model.name} is no language model: give a budget in latency (such as 0.7x) or fps, or a recipe"
        )
    if device != "this":
        raise UsageError(f"device = {device}: latency is measured, so the plan is for this machine: leave device out")
    return share


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

    Returns a recipe without steps if the original meets the budget. Raises UsageError as ``check_depth_budget``, and
    for changes that are not valid or of a method that reaches no latency.
    """
    from jettison.graph.residual import find_residuals

    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    share, method = check_depth_budget(source, latency, fps), default_method("depth")
    find_residuals(source.new_skeleton(), source.anatomy)  # raises for a model whose depth cannot be pruned
    why = []
    if share is None:
        own = _original_ms(source, folder)
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


def _original_ms(source: ModelFolder, folder: Path | None) -> float:
    """Return the milliseconds of the original for one image: those of the run's beginning, or measured now."""
    from jettison.pipeline.depth import original_ms

    model, path = source.identity(), folder / MEASURED if folder else None
    if path and path.exists():
        record = read_record(path)
        if record.get("model") == model:
            return float(record["milliseconds"])
    milliseconds = round(original_ms(source), 4)
    if path:
        write_record(path, {"model": model, "milliseconds": milliseconds})
    return milliseconds


def _trained_on(images: str | Path) -> int:
    """Return how many images a training can use at least."""
    from jettison.pipeline.trial import count_images

    return int(count_images(images, None) * (1 - HELD_OUT))
