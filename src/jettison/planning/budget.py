"""Which budgets a plan or a fit may have, by the kind of the model.

A language model has tokens per second and memory, an image classifier or perception model latency or images per
second, a diffusion pipeline a speedup.
"""

from typing import Any

from jettison.core.bytesize import parse_bytes
from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number
from jettison.graph.shape import ModelShape
from jettison.recipe.fields import FASTEST

RATES = (1e-6, 1e9)  # smallest and largest valid budget, tokens per second
MOST_IMAGES = 1e6  # per second that may be asked for
KINDS = {  # domain -> the kind in words, and its budgets, each with an example
    "text": ("a language model", {"tps": "90", "memory": "3GB"}),
    "vision": ("an image classifier", {"latency": "0.7x", "fps": "30"}),
    "perception": ("a perception model", {"latency": "0.7x", "fps": "30"}),
    "diffusion": ("a diffusion pipeline", {"speedup": "2.5"}),
}
OWNERS = {
    name: " and ".join(f"{kind.partition(' ')[2]}s" for kind, own in KINDS.values() if name in own)
    for _, budgets in KINDS.values()
    for name in budgets
}
STEPS = {"latency": "depth.latency=0.7", "fps": "depth.latency=0.7", "speedup": "program.speedup=2.5"}  # in a recipe


def parse_latency(latency: str | float) -> float:
    """Return a latency as a share of the original's. Raises UsageError if it is not between 0 and 1.

    latency: a number, or a text such as ``0.7`` or ``0.7x``.
    """
    share = _number(latency)
    if not 0 < share < 1:
        raise UsageError(
            f"latency = {shown(latency)}: a share of the original's between 0 and 1 is needed, such as 0.7x"
        )
    return share


def parse_speedup(speedup: str | float) -> float:
    """Return how many times as fast a run must be. Raises UsageError if that is not above 1, or absurd.

    speedup: a number, or a text such as ``2.5`` or ``2.5x``.
    """
    times = _number(speedup)
    if not 1 < times <= FASTEST:
        raise UsageError(
            f"speedup = {shown(speedup)}: how many times as fast, a number above 1 and at most {FASTEST:g}, is needed, "
            "such as 2.5"
        )
    return times


def _number(value: str | float) -> float:
    """Return a number that may end in x; 0 for anything else."""
    try:
        return float(value.strip().removesuffix("x")) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return 0.0


def check_budget(model: ModelShape, budgets: dict[str, Any], *, device: str = "this", recipe: Any = None) -> None:
    """Check the budgets of a plan or a fit: tps, memory, latency, fps and speedup; None where one is not set.

    recipe: the recipe that is given; None if one is to be planned.
    Raises UsageError for budgets of another kind of model, for two at once or none, and for values that are not valid.
    The values of a language model are checked by ``check_budgets``.
    """
    kind, own = KINDS.get(model.anatomy.family.domain, KINDS["text"])
    asked = {name: value for name, value in budgets.items() if value is not None}
    if "latency" in asked:
        parse_latency(asked["latency"])
    if "speedup" in asked:
        parse_speedup(asked["speedup"])
    if "fps" in asked:
        check_number("fps", asked["fps"], 0, MOST_IMAGES)
        if asked["fps"] == 0:
            raise UsageError("fps = 0: a number of images per second above 0 is needed")
    for name in asked:
        if name not in own:
            raise UsageError(
                f"{name} is a budget of {OWNERS[name]}; {model.name} is {kind}: give {' or '.join(own)}, or a recipe"
            )
    if kind == KINDS["text"][0]:
        return
    if len(asked) > 1:
        first, second = asked
        raise UsageError(f"{first} = {shown(asked[first])} and {second} = {shown(asked[second])}: give one of them")
    if recipe is not None:
        for name in asked:
            if kind == KINDS["perception"][0]:
                raise UsageError(f"{name} is for a plan, and there is a recipe: give one of them")
            step = STEPS[name].partition(".")[0]
            raise UsageError(
                f"{name} is for a plan, and there is a recipe: let its {step} step say it, as --set {STEPS[name]}"
            )
        return
    if not asked:
        examples = " or ".join(f"{name} (such as {example})" for name, example in own.items())
        raise UsageError(f"{model.name} is {kind}: give a budget in {examples}, or a recipe")
    if device != "this":
        raise UsageError(f"device = {device}: times are measured, so the plan is for this machine: leave device out")


def check_budgets(tps: float | None, memory: str | float | None, needed: bool = True) -> float | None:
    """Check the budgets and return the bytes of ``memory``, or None.

    needed: whether at least one budget must be set.
    Raises UsageError for a budget that is not valid, and for none at all if one is needed.
    """
    if needed and tps is None and memory is None:
        raise UsageError("a plan needs a budget: give tokens per second (tps), memory, or both")
    if tps is not None:
        check_number("tps", tps, *RATES)
    return None if memory is None else parse_bytes(memory)
