"""A plan in plain numbers: for tables, for the report's charts, for JSON."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from jettison.core.bytesize import format_bytes
from jettison.core.numbers import format_rate
from jettison.devices.device import Device
from jettison.devices.roofline import Operator
from jettison.graph.shape import ModelShape
from jettison.planning.baselines import gain, gate_up_recipe, uniform_recipe, usual_group
from jettison.planning.cost import Setting, operators, predict, predict_prefill, unit_operators
from jettison.planning.groups import Choice, Unit
from jettison.planning.planner import Plan
from jettison.recipe.recipe import Recipe

SHOWN = 3  # bits at which the page draws what each block would lose
CONTEXTS = (0, 1024, 2048, 4096, 8192, 16384, 32768)


def plan_data(found: Plan) -> dict[str, Any]:
    """Everything about a plan that can be drawn, as JSON takes it."""
    prefill = replace(found.setting, rows=max(1, found.setting.context), context=0)
    return plan_summary(found) | {
        "operators": {
            phase: by_role(operators(found.shape, found.recipe, setting), found.device)
            for phase, setting in (("decode", found.setting), ("prefill", prefill))
        },
        "front": [dict(zip(("memory", "tokens_per_second", "loss"), point, strict=False)) for point in found.front()],
        "gains": gains(found.shape, found.recipe, found.device, found.setting),
        "sensitivity": [
            {"role": unit.role, "block": unit.block, "loss": found.loss_of(unit, choice)}
            for unit, choice in _at(found, SHOWN).items()
            if unit.block is not None
        ],
        "map": [
            {"role": unit.role, "block": unit.block, "choice": str(choice), "loss": found.loss_of(unit, choice)}
            for unit, choice in found.assignment.items()
            if unit.role != "embed"
        ],
    }


def _at(found: Plan, bits: int) -> dict[Unit, Choice]:
    """Each unit that can have so many bits, in its largest groups."""
    open_to = {
        unit: of for group, of in zip(found.problem.groups, found.problem.choices, strict=True) for unit in group
    }
    fit = {unit: [choice for choice in of if choice.bits == bits and not choice.rank] for unit, of in open_to.items()}
    return {unit: max(of, key=lambda choice: choice.group_size) for unit, of in fit.items() if of}


def plan_summary(found: Plan) -> dict[str, Any]:
    """What the plan is and what else there was."""
    device = found.device
    return {
        "model": found.shape.name,
        "device": {"name": device.name, "title": device.title, "bandwidth": device.bandwidth, "flops": device.peak()},
        "setting": {
            "context": found.setting.context,
            "batch": found.setting.batch,
            "cache_bits": found.setting.cache_bits,
            "engine": found.setting.runtime and found.setting.runtime.name,
        },
        "verdict": verdict(found),
        "losses": found.losses,
        "loss": found.loss,
        "memory": found.cost.memory,
        "tokens_per_second": found.cost.tokens_per_second,
        "prompt_seconds": predict_prefill(found.shape, found.recipe, device, found.setting).seconds,
        "measured": list(found.measured),
        "roles": role_rows(found),
        "presets": [
            {
                "name": other.name,
                "memory": other.cost.memory,
                "tokens_per_second": other.cost.tokens_per_second,
                "loss": other.loss,
                "misses": list(other.misses),
            }
            for other in found.alternatives
        ],
    }


def role_rows(found: Plan) -> list[dict[str, Any]]:
    """Per role: which choices in how many blocks, weights, bytes, part of the time, expected loss."""
    rows: dict[str, dict[str, Any]] = {}
    for unit, choice in found.assignment.items():
        row = rows.setdefault(
            unit.role,
            {"role": unit.role, "choices": defaultdict(int), "weights": 0, "bytes": 0.0, "time": 0.0, "loss": 0.0},
        )
        cost = list(unit_operators(found.shape, unit, choice, found.setting))
        row["choices"][str(choice)] += 1
        row["weights"] += unit.weights
        row["bytes"] += sum(operator.stored for operator in cost)
        row["time"] += sum(operator.seconds(found.device) for operator in cost) / found.cost.seconds
        row["loss"] += found.loss_of(unit, choice)
    return [row | {"choices": dict(sorted(row["choices"].items()))} for row in rows.values()]


def verdict(found: Plan) -> str:
    """One line: what the plan gives, and how that compares with uniform 4 bits."""
    line = (
        f"{found.shape.name} on {found.device.name}: {format_rate(found.cost.tokens_per_second)} tokens/s and "
        f"{format_bytes(found.cost.memory)} at {found.setting.context} tokens of context"
    )
    uniform = predict(found.shape, uniform_recipe(4, usual_group(found.shape)), found.device, found.setting)
    faster = found.cost.tokens_per_second / uniform.tokens_per_second
    return (
        f"{line}, {faster:.2f}× the speed of uniform 4 bits in {found.cost.memory / uniform.memory:.0%} of its memory"
    )


def by_role(found: list[Operator], device: Device) -> list[dict[str, Any]]:
    """Operators of a role together: bytes and flops of a step, seconds, and flops per byte."""
    sums: dict[str, dict[str, Any]] = {}
    for operator in found:
        row = sums.setdefault(operator.role, {"role": operator.role, "moved": 0.0, "flops": 0.0, "seconds": 0.0})
        row["moved"] += operator.moved
        row["flops"] += operator.flops
        row["seconds"] += operator.seconds(device)
    return list(sums.values())


def gains(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting) -> dict[str, Any]:
    """How much faster than uniform 4 bits a recipe and W4/W2-GateUp decode, in percent, by context."""
    group = usual_group(shape)
    recipes = {"this plan": recipe, "W4/W2-GateUp": gate_up_recipe(group, group)}
    found = {
        name: [gain(shape, each, device, replace(setting, context=context), group) for context in CONTEXTS]
        for name, each in recipes.items()
    }
    return {"contexts": list(CONTEXTS)} | found
