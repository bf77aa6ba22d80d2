"""A plan as plain numbers, for tables, for the charts of the report and for JSON."""

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

SHOWN = 3  # bits at which the page shows the expected loss of every block
CONTEXTS = (0, 1024, 2048, 4096, 8192, 16384, 32768)


def plan_data(plan: Plan) -> dict[str, Any]:
    """Return everything about a plan that is drawn on its page, in types that JSON knows."""
    prefill = replace(plan.setting, rows=max(1, plan.setting.context), context=0)
    return plan_summary(plan) | {
        "operators": {
            phase: by_role(operators(plan.shape, plan.recipe, setting), plan.device)
            for phase, setting in (("decode", plan.setting), ("prefill", prefill))
        },
        "front": [dict(zip(("memory", "tokens_per_second", "loss"), point, strict=False)) for point in plan.front()],
        "gains": gains(plan.shape, plan.recipe, plan.device, plan.setting),
        "sensitivity": [
            {"role": unit.role, "block": unit.block, "loss": plan.loss_of(unit, choice)}
            for unit, choice in _choices_at(plan, SHOWN).items()
            if unit.block is not None
        ],
        "map": [
            {"role": unit.role, "block": unit.block, "choice": str(choice), "loss": plan.loss_of(unit, choice)}
            for unit, choice in plan.assignment.items()
            if unit.role != "embed"
        ],
    }


def _choices_at(plan: Plan, bits: int) -> dict[Unit, Choice]:
    """Return, for every unit that can have these bits, the choice with the largest groups and no LoRA adapter."""
    open_to = {
        unit: choices
        for group, choices in zip(plan.problem.groups, plan.problem.choices, strict=True)
        for unit in group
    }
    fit = {
        unit: [choice for choice in choices if choice.bits == bits and not choice.rank]
        for unit, choices in open_to.items()
    }
    return {unit: max(choices, key=lambda choice: choice.group_size) for unit, choices in fit.items() if choices}


def plan_summary(plan: Plan) -> dict[str, Any]:
    """Return the plan in numbers: model, device, setting, cost, loss, roles, and the presets beside it."""
    device = plan.device
    return {
        "model": plan.shape.name,
        "device": {"name": device.name, "title": device.title, "bandwidth": device.bandwidth, "flops": device.peak()},
        "setting": {
            "context": plan.setting.context,
            "batch": plan.setting.batch,
            "cache_bits": plan.setting.cache_bits,
            "engine": plan.setting.runtime and plan.setting.runtime.name,
        },
        "verdict": verdict(plan),
        "losses": plan.losses,
        "loss": plan.loss,
        "memory": plan.cost.memory,
        "tokens_per_second": plan.cost.tokens_per_second,
        "prompt_seconds": predict_prefill(plan.shape, plan.recipe, device, plan.setting).seconds,
        "measured": list(plan.measured),
        "roles": role_rows(plan),
        "presets": [
            {
                "name": other.name,
                "memory": other.cost.memory,
                "tokens_per_second": other.cost.tokens_per_second,
                "loss": other.loss,
                "misses": list(other.misses),
            }
            for other in plan.alternatives
        ],
    }


def role_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return a row per role: choices and in how many blocks, weights, bytes, share of the time, expected loss."""
    rows: dict[str, dict[str, Any]] = {}
    for unit, choice in plan.assignment.items():
        row = rows.setdefault(
            unit.role,
            {"role": unit.role, "choices": defaultdict(int), "weights": 0, "bytes": 0.0, "time": 0.0, "loss": 0.0},
        )
        # A plan packs an embedding only where it shares the head's matrix, whose bytes are counted there.
        cost = list(unit_operators(plan.shape, unit, choice, plan.setting, shared=choice.grid is not None))
        row["choices"][str(choice)] += 1
        row["weights"] += unit.weights
        row["bytes"] += sum(operator.stored for operator in cost)
        row["time"] += sum(operator.seconds(plan.device) for operator in cost) / plan.cost.seconds
        row["loss"] += plan.loss_of(unit, choice)
    return [row | {"choices": dict(sorted(row["choices"].items()))} for row in rows.values()]


def verdict(plan: Plan) -> str:
    """Return one line: speed and memory of the plan, and how these compare with uniform 4 bits."""
    line = (
        f"{plan.shape.name} on {plan.device.name}: {format_rate(plan.cost.tokens_per_second)} tokens/s and "
        f"{format_bytes(plan.cost.memory)} at {plan.setting.context} tokens of context"
    )
    uniform = predict(plan.shape, uniform_recipe(4, usual_group(plan.shape)), plan.device, plan.setting)
    faster = plan.cost.tokens_per_second / uniform.tokens_per_second
    return f"{line}, {faster:.2f}× the speed of uniform 4 bits in {plan.cost.memory / uniform.memory:.0%} of its memory"


def by_role(step: list[Operator], device: Device) -> list[dict[str, Any]]:
    """Sum the operators of a step by role. Returns role, bytes moved, flops and seconds."""
    sums: dict[str, dict[str, Any]] = {}
    for operator in step:
        row = sums.setdefault(operator.role, {"role": operator.role, "moved": 0.0, "flops": 0.0, "seconds": 0.0})
        row["moved"] += operator.moved
        row["flops"] += operator.flops
        row["seconds"] += operator.seconds(device)
    return list(sums.values())


def gains(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting) -> dict[str, Any]:
    """Return by how many percent a recipe and W4/W2-GateUp decode faster than uniform 4 bits, for several contexts."""
    group = usual_group(shape)
    recipes = {"this plan": recipe, "W4/W2-GateUp": gate_up_recipe(group, group)}
    percent = {
        name: [gain(shape, candidate, device, replace(setting, context=context), group) for context in CONTEXTS]
        for name, candidate in recipes.items()
    }
    return {"contexts": list(CONTEXTS)} | percent
