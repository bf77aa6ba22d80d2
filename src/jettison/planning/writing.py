"""A plan as a recipe."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

from jettison.core.errors import UsageError
from jettison.planning.groups import Choice, Unit
from jettison.recipe.recipe import Recipe, load_recipe, preset_names
from jettison.recipe.registry import default_method


def to_recipe(assignment: dict[Unit, Choice], name: str) -> Recipe:
    """One step per choice; what keeps 16 bits has none."""
    steps, recovered = [], {}
    of_choice: dict[Choice, dict[Unit, None]] = defaultdict(dict)
    for unit, choice in assignment.items():
        if choice.grid is not None:
            of_choice[choice][unit] = None
    blocks = {unit.role: {other.block for other in assignment if other.role == unit.role} for unit in assignment}
    for choice, units in sorted(of_choice.items(), reverse=True):
        purpose = "quantize_for_adapters" if choice.rank else "quantize_8_bits" if choice.bits == 8 else "quantize"
        method = {"method": default_method(purpose)} | ({"rank": choice.rank} if choice.rank else {})
        grid = {"bits": choice.bits, "group_size": choice.group_size, "symmetric": choice.symmetric}
        steps.append({"quantize": method | grid, "where": _where(units, blocks)})
        if choice.rank:
            recovered |= units
    if recovered:
        rank = max(choice.rank for choice in of_choice)
        training = {"train": ["lora", "scales"], "rank": rank, "init": "svd"}
        steps.append({"recover": training, "where": _where(recovered, blocks)})
    text = "synthetic" if recovered else "books"
    if not steps:
        return Recipe(name, steps=(), use="Everything stays in 16 bits.")
    return load_recipe(
        {"name": name, "use": "Searched for this budget.", "calibration": {"text": text}, "steps": steps}
    )


def _where(units: Iterable[Unit], blocks: dict[str, set[int | None]]) -> list[dict]:
    """Roles that lie in the same blocks together; all blocks of a role are not listed."""
    found: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        found[unit.role].append(unit)
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for role, of in found.items():
        numbers = {unit.block for unit in of}
        key = () if numbers == blocks[role] else tuple(sorted(numbers))
        together[key] += [name for name in of[0].roles if name not in together[key]]
    return [
        {"role": roles} | ({"block": list(numbers)} if numbers else {}) for numbers, roles in sorted(together.items())
    ]


def changed(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe with those changes that it takes."""
    for change in changes:
        with suppress(UsageError):
            recipe = load_recipe(recipe, [change])
    return recipe


def check_changes(changes: list[str]) -> None:
    """Raises UsageError for a change that no preset takes, those before it made: nor would a recipe that is planned."""
    recipes = [load_recipe(name) for name in preset_names()] if changes else []
    for change in changes:
        refusals = []
        for place, recipe in enumerate(recipes):
            try:
                recipes[place] = load_recipe(recipe, [change])
            except UsageError as error:
                refusals.append(error)
        if len(refusals) == len(recipes):
            raise max(refusals, key=lambda error: len(str(error)))  # the one that knows most valid names
