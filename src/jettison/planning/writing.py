"""Turning the choices of a plan into a recipe, and applying the user's changes to it."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

from jettison.core.errors import UsageError
from jettison.planning.groups import Choice, Unit
from jettison.recipe.recipe import Recipe, load_recipe, preset_names
from jettison.recipe.registry import default_method


def to_recipe(assignment: dict[Unit, Choice], name: str) -> Recipe:
    """Write the choices of all units as a recipe: one quantize step per choice, none for units that keep 16 bits.

    Units with a LoRA adapter get a recover step.
    """
    steps, recovered = [], {}
    units_of: dict[Choice, dict[Unit, None]] = defaultdict(dict)  # the inner dict is an ordered set
    for unit, choice in assignment.items():
        if choice.grid is not None:
            units_of[choice][unit] = None
    blocks = {unit.role: {other.block for other in assignment if other.role == unit.role} for unit in assignment}
    for choice, units in sorted(units_of.items(), reverse=True):
        purpose = "quantize_for_adapters" if choice.rank else "quantize_8_bits" if choice.bits == 8 else "quantize"
        method = {"method": default_method(purpose)} | ({"rank": choice.rank} if choice.rank else {})
        grid = {"bits": choice.bits, "group_size": choice.group_size, "symmetric": choice.symmetric}
        steps.append({"quantize": method | grid, "where": _where(units, blocks)})
        if choice.rank:
            recovered |= units
    if recovered:
        rank = max(choice.rank for choice in units_of)
        training = {"train": ["lora", "scales"], "rank": rank, "init": "svd"}
        steps.append({"recover": training, "where": _where(recovered, blocks)})
    text = "synthetic" if recovered else "books"
    if not steps:
        return Recipe(name, steps=(), use="Everything stays in 16 bits.")
    return load_recipe(
        {"name": name, "use": "Searched for this budget.", "calibration": {"text": text}, "steps": steps}
    )


def _where(units: Iterable[Unit], blocks: dict[str, set[int | None]]) -> list[dict]:
    """Return the ``where`` of a step: roles with the same blocks share an entry.

    blocks: role -> all of its blocks; an entry lists no blocks if it has all of them.
    """
    units_of: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        units_of[unit.role].append(unit)
    roles_in: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for role, members in units_of.items():
        numbers = {unit.block for unit in members}
        key = () if numbers == blocks[role] else tuple(sorted(numbers))
        roles_in[key] += [name for name in members[0].roles if name not in roles_in[key]]
    return [
        {"role": roles} | ({"block": list(numbers)} if numbers else {}) for numbers, roles in sorted(roles_in.items())
    ]


def changed(recipe: Recipe, changes: list[str]) -> Recipe:
    """Return the recipe with the changes that it accepts; others are ignored (``check_changes`` refuses bad ones)."""
    for change in changes:
        with suppress(UsageError):
            recipe = load_recipe(recipe, [change])
    return recipe


def check_changes(changes: list[str]) -> None:
    """Raise UsageError for a change that no preset accepts after the earlier changes; nor would a planned recipe."""
    recipes = [load_recipe(name) for name in preset_names()] if changes else []
    for change in changes:
        refusals = []
        for number, recipe in enumerate(recipes):
            try:
                recipes[number] = load_recipe(recipe, [change])
            except UsageError as error:
                refusals.append(error)
        if len(refusals) == len(recipes):
            raise max(refusals, key=lambda error: len(str(error)))  # the longest message lists the most valid names
