"""Choose among the presets: the one that loses least among those that fit."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from jettison.devices import Cost, Device, Operator, decode_cost, find_device
from jettison.errors import UsageError
from jettison.models import Anatomy, Linear, ModelFolder
from jettison.recipe import Recipe, Step, load_recipe, preset_names, with_why
from jettison.units import format_bytes, parse_bytes

CONTEXT = 2048
CACHE_BYTES = 2  # keys and values in 16 bits
ADAPTER_BITS = 16


@dataclass(frozen=True)
class Choice:
    """A preset, what it would cost, and why it does not fit (empty if it does)."""

    recipe: Recipe
    cost: Cost
    misses: tuple[str, ...]


def plan(
    model: str | Path,
    *,
    device: str | Path | Device = "this",
    tps: float | None = None,
    memory: str | float | None = None,
    context: int = CONTEXT,
    changes: Iterable[str] = (),
) -> Recipe:
    """The preset with the least expected loss that meets the budgets, with the reasons in ``why``.

    tps: tokens per second to reach, decoding with batch 1 at ``context`` tokens. memory: bytes, or a string such as
    "3GB", for weights, adapter and the cache of keys and values. Raises UsageError if no budget is given, one makes no
    sense, or none of the presets meets them; the message then says what would be feasible.
    """
    choices = rank_presets(model, device=device, tps=tps, memory=memory, context=context, changes=changes)
    for choice in choices:
        if not choice.misses:
            return with_why(choice.recipe, _why(choice, choices, tps, memory, context))
    if all(choice.cost.memory == inf for choice in choices):
        raise UsageError(f"no preset fits {model}: {choices[0].misses[0]}")
    fastest = max(choices, key=lambda choice: choice.cost.tokens_per_second)
    smallest = min(choices, key=lambda choice: choice.cost.memory)
    raise UsageError(
        f"no preset meets the budget for {model}: the fastest, {fastest.recipe.name}, is predicted at "
        f"{fastest.cost.tokens_per_second:.4g} tokens/s; the smallest, {smallest.recipe.name}, at "
        f"{format_bytes(smallest.cost.memory)} with {context} tokens of context"
    )


def rank_presets(
    model: str | Path,
    *,
    device: str | Path | Device = "this",
    tps: float | None = None,
    memory: str | float | None = None,
    context: int = CONTEXT,
    changes: Iterable[str] = (),
) -> list[Choice]:
    """All presets with their costs, the least expected loss first. See ``plan``."""
    if tps is None and memory is None:
        raise UsageError("a plan needs a budget: give tokens per second (tps), memory, or both")
    if tps is not None and not tps > 0:
        raise UsageError(f"tps = {tps}: a positive number of tokens per second is needed")
    if context < 0:
        raise UsageError(f"context = {context}: it cannot be negative")
    limit = None if memory is None else parse_bytes(memory)
    target = device if isinstance(device, Device) else find_device(device)
    source = ModelFolder(model)
    changes = list(changes)
    for change in changes:
        _check_change(change)
    choices = []
    for name in preset_names():
        recipe = load_recipe(name, [change for change in changes if _refusal(name, change) is None])
        misses = []
        try:
            cost = predict(source, recipe, target, context)
        except UsageError as error:  # a group size that does not divide
            choices.append(Choice(recipe, Cost(inf, inf, inf), (f"{error}; try --set quantize.group_size=...",)))
            continue
        if tps is not None and cost.tokens_per_second < tps:
            misses.append(f"{cost.tokens_per_second:.4g} tokens/s, {tps:.4g} asked")
        if limit is not None and cost.memory > limit:
            misses.append(f"{format_bytes(cost.memory)}, {format_bytes(limit)} asked")
        if cost.memory > target.memory:
            misses.append(f"{format_bytes(cost.memory)}, {target.name} has {format_bytes(target.memory)}")
        choices.append(Choice(recipe, cost, tuple(misses)))
    return sorted(choices, key=lambda choice: choice.recipe.loss or 0.0)


def _refusal(preset: str, change: str) -> UsageError | None:
    try:
        load_recipe(preset, [change])
    except UsageError as error:
        return error
    return None


def _check_change(change: str) -> None:
    """Raises UsageError for a change that no preset takes."""
    refusals = [_refusal(name, change) for name in preset_names()]
    if all(refusals):
        raise max(refusals, key=lambda error: len(str(error)))  # the one that knows most valid names


def predict(source: ModelFolder, recipe: Recipe, device: Device, context: int = CONTEXT) -> Cost:
    """Decoding cost of ``source`` compressed by ``recipe``. Needs the config only, no weights."""
    config = source.config.get_text_config()
    active = 1.0
    if source.anatomy.family.experts:
        experts = getattr(config, "num_experts", None) or config.num_local_experts
        active = config.num_experts_per_tok / experts
    operators, counted = [], 0
    for linear in source.anatomy:
        if "embed" in linear.roles and source.anatomy.tied and _unquantized_head(source.anatomy, recipe):
            continue  # stored once, as the head
        share = 0.0 if "embed" in linear.roles else active if "expert" in linear.roles else 1.0
        operators.append(Operator(linear.name, _bits(linear, recipe) * linear.weights / 8, linear.weights, share))
        counted += linear.weights
        if rank := adapter_rank(linear, recipe):
            numbers = rank * (linear.rows + linear.columns)
            operators.append(Operator(f"{linear.name} adapter", numbers * ADAPTER_BITS / 8, numbers, share))
    rest = max(0, source.anatomy.parameters - counted)
    operators.append(Operator("norms and the rest", 2.0 * rest, 0.0, 1.0))
    return decode_cost(operators, cache_bytes(config, context), device)


def _unquantized_head(anatomy: Anatomy, recipe: Recipe) -> bool:
    return anatomy.head is None or _step(anatomy.head, recipe) is None


def _step(linear: Linear, recipe: Recipe) -> Step | None:
    return next((step for step in recipe.of("quantize") if step.where.matches(linear.roles, linear.block)), None)


def _bits(linear: Linear, recipe: Recipe) -> float:
    step = _step(linear, recipe)
    return step.grid.bits_per_weight(linear.columns) if step else 16.0


def adapter_rank(linear: Linear, recipe: Recipe) -> int:
    """The rank of the side path that recovery will leave beside a linear, 0 for none."""
    for step in recipe.of("recover"):
        if "lora" in step.options["train"] and step.where.matches(linear.roles, linear.block):
            return step.options["rank"]
    return 0


def cache_bytes(config, context: int) -> float:
    """Bytes of keys and values; a layer with a sliding window keeps no more than its window."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    tokens = sum(min(context, window) if "sliding" in kind and window else context for kind in kinds)
    return 2.0 * heads * width * tokens * CACHE_BYTES


def _why(
    choice: Choice, choices: list[Choice], tps: float | None, memory: str | float | None, context: int
) -> list[str]:
    reasons = [
        f"predicted: {choice.cost.tokens_per_second:.4g} tokens/s, {format_bytes(choice.cost.memory)} "
        f"at {context} tokens of context"
    ]
    for other in choices[: choices.index(choice)]:
        reasons.append(f"{other.recipe.name} would lose less but misses the budget: {'; '.join(other.misses)}")
    return reasons
