"""Baselines that a plan is compared with: uniform bits, and W4/W2-GateUp (arXiv:2606.04238)."""

from typing import Any

from jettison.devices.device import Device
from jettison.graph.shape import ModelShape
from jettison.planning.cost import Setting, predict
from jettison.planning.groups import GROUP_SIZES
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.recipe.registry import default_method

BLOCK_ROLES = ("q", "k", "v", "o", "gate", "up", "down", "linear")
GATE_UP = ("gate", "up")


def usual_group(shape: ModelShape) -> int:
    """Return the largest usual group size that divides the row length of every matrix.

    If none divides them all, return the largest one; for each matrix it is then replaced by one that fits.
    """
    columns = {linear.columns for linear in shape.anatomy if "embed" not in linear.roles}
    fit = [size for size in GROUP_SIZES if all(width % size == 0 for width in columns)]
    return max(fit or GROUP_SIZES)


def gain(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting, group: int = 128, head: int = 4) -> float:
    """Return by how many percent a recipe decodes faster than uniform 4 bits.

    group: group size of the uniform recipe.
    head: bits of the head in the uniform recipe; 16 leaves it unquantized.
    """
    recipes = (recipe, uniform_recipe(4, group, head))
    rates = [predict(shape, candidate, device, setting).tokens_per_second for candidate in recipes]
    return 100 * (rates[0] / rates[1] - 1)


def uniform_recipe(bits: int, group_size: int = 128, head: int | None = None) -> Recipe:
    """Return the recipe that puts all linears on one grid.

    head: bits of the head; 16 leaves it unquantized, None means ``bits``.
    """
    steps = [_step(bits, group_size, list(BLOCK_ROLES))]
    head = bits if head is None else head
    steps += [] if head == 16 else [_step(head, group_size, ["head"])]
    return load_recipe({"name": f"uniform {bits} bits", "steps": steps})


def gate_up_recipe(group_size: int = 128, low_group_size: int = 128, head: int = 4, rank: int = 0) -> Recipe:
    """Return W4/W2-GateUp: gate and up in 2 bits, all other linears in 4 bits.

    head: bits of the head: 4, or 16 to leave it unquantized.
    rank: rank of the LoRA adapters beside gate and up; 0 for none.
    Source: arXiv:2606.04238.
    """
    others = [role for role in BLOCK_ROLES if role not in GATE_UP] + (["head"] if head == 4 else [])
    steps = [_step(4, group_size, others), _step(2, low_group_size, list(GATE_UP))]
    if rank:
        steps.append({"recover": {"train": ["lora"], "rank": rank}, "where": {"role": list(GATE_UP)}})
    return load_recipe({"name": "W4/W2-GateUp", "steps": steps})


def _step(bits: int, group_size: int, roles: list[str]) -> dict[str, Any]:
    grid = {"method": default_method("quantize_at_once"), "bits": bits, "group_size": group_size}
    return {"quantize": grid, "where": {"role": roles}}
