"""The planner: from a device and a budget to a recipe with reasons. It needs only the config of the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np

from jettison.core.bytesize import format_bytes
from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number, check_seed, format_rate
from jettison.devices.device import Device, find_device
from jettison.devices.roofline import Cost, step_cost
from jettison.formats.runtimes import find_runtime, illegal
from jettison.graph.folder import open_shape
from jettison.graph.shape import ModelShape
from jettison.planning.budget import check_budgets
from jettison.planning.cost import CONTEXT, Setting, fixed_operators, planned_all, predict, unit_operators
from jettison.planning.depth import plan_latency
from jettison.planning.groups import BITS, GROUP_SIZES, Choice, Unit, choices, find_units, tie
from jettison.planning.program import plan_program
from jettison.planning.search import Picks, Problem, feasible, least, pareto, quickest, search
from jettison.planning.writing import changed, check_changes, to_recipe
from jettison.recipe.recipe import Recipe, load_recipe, preset_names
from jettison.statistics.known import any_known
from jettison.statistics.prior import prior_loss, recovered_part

LOSSES = ("auto", "prior", "gradients", "measured")
MOST_PLANS = 100_000  # plans that refinement may measure


@dataclass(frozen=True)
class Alternative:
    """Another recipe under the same budget.

    misses: reasons why it does not fit the budget; empty if it does.
    """

    name: str
    cost: Cost
    loss: float
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A plan: the request, the chosen recipe, and the alternatives."""

    shape: ModelShape
    device: Device
    setting: Setting
    problem: Problem
    picks: Picks
    recipe: Recipe
    losses: str  # source of the expected losses: prior, gradients or measured
    loss_of: Callable[[Unit, Choice], float]  # expected loss in nats per token
    measured: tuple[float, ...] = ()  # KL of the plans that refinement tried
    # The plan with the least expected loss, where a faster plan was taken whose loss cannot be told apart from it.
    passed: Picks = ()

    @property
    def loss(self) -> float:
        """The expected loss, in nats per token."""
        return self.problem.loss(self.picks)

    @property
    def assignment(self) -> dict[Unit, Choice]:
        """The choice of every unit."""
        return self.problem.assignment(self.picks)

    @cached_property
    def cost(self) -> Cost:
        """The predicted cost of a step of decoding."""
        return predict(self.shape, self.recipe, self.device, self.setting)

    @cached_property
    def alternatives(self) -> list[Alternative]:
        """The presets, under the same losses and costs; the least expected loss first."""
        presets = [self._alternative(load_recipe(name)) for name in preset_names()]
        return sorted(presets, key=lambda preset: preset.loss)

    def _alternative(self, recipe: Recipe) -> Alternative:
        cost = predict(self.shape, recipe, self.device, self.setting)
        chosen = planned_all(list(self.assignment), recipe, self.setting.runtime)
        reasons = misses(cost, self.problem, self.device)
        if self.setting.runtime is not None:
            grids = {
                linear.name: choice.grid for unit, choice in chosen.items() for linear in unit.linears if choice.grid
            }
            reasons += illegal(self.setting.runtime, self.shape.anatomy, grids)
        return Alternative(
            recipe.name, cost, sum(map(self.loss_of, *zip(*chosen.items(), strict=True))), tuple(reasons)
        )

    def front(self, points: int = 16) -> list[tuple[float, float, float, Picks]]:
        """Return the Pareto front of memory and loss under the time budget.

        Each entry is (bytes, tokens per second, expected loss, choices).
        """
        tokens = self.setting.batch
        plans = []
        for picks in pareto(self.problem, points):
            seconds, memory = self.problem.cost(picks)
            plans.append((float(memory), tokens / float(seconds), self.problem.loss(picks), picks))
        return plans


def plan(model: str | Path, **options) -> Recipe:
    """Plan a recipe for a device and a budget; its ``why`` holds the reasons.

    Takes the options of ``make_plan``; for an image classifier or perception model, those of ``plan_latency``; for a
    diffusion pipeline, those of ``plan_program``.
    """
    if options.get("speedup") is not None:
        return plan_program(model, **options)
    if options.get("latency") is not None or options.get("fps") is not None:
        return plan_latency(model, **options)
    return make_plan(model, **options).recipe


def make_plan(
    model: str | Path | ModelShape,
    *,
    device: str | Path | Device = "this",
    tps: float | None = None,
    memory: str | float | None = None,
    context: int = CONTEXT,
    batch: int = 1,
    cache_bits: int = 16,
    runtime: str | None = None,
    bits: Iterable[int] = BITS,
    group_sizes: Iterable[int] = GROUP_SIZES,
    recovery: bool = True,
    losses: str = "auto",
    refine: int = 0,
    changes: Iterable[str] = (),
    seed: int = 0,
) -> Plan:
    """Choose bits and group size for every matrix, such that the expected loss is least and the budgets are met.

    model: a known shape such as ``qwen3-4b``, a config.json, a model folder or a hub id.
    device: a name from ``jettison devices``, ``this``, a .yaml file, or a Device.
    tps: tokens per second to reach in decoding, all sequences of the batch together, each with ``context`` tokens in
        its cache.
    memory: bytes, or a string such as "3GB", for weights, LoRA adapters and the cache of keys and values.
    context, batch, cache_bits: the work that the budgets are for, see ``cost.Setting``.
    runtime: choose only what this runtime loads (see formats/runtimes.yaml).
    bits, group_sizes: the widths and group sizes to choose from.
    recovery: whether 2 bits with a LoRA adapter, which must be recovered by training, may be chosen.
    losses: where the expected losses come from: ``prior`` (by role, depth and bits, fitted on scribe), ``gradients`` or
        ``measured`` (both read the weights, see ``sensitivity``), or ``auto``: what an earlier run has measured on this
        model, else the prior.
    refine: number of plans around the best one to measure.
    changes: changes of the recipe, each as ``verb.option=value``.

    Of plans whose expected losses cannot be told apart, the fastest is taken (see ``search.quickest``), unless the
    model meets the budget as it is.

    Raises UsageError if there is no budget, if a value is not valid, or if no plan meets the budgets; the message then
    says what would be feasible.
    """
    limit = check_budgets(tps, memory)
    check_losses(losses, refine)
    check_changes(changes := list(changes))
    check_seed(seed)
    loader = None if runtime is None else find_runtime(runtime)
    setting = Setting(context=context, batch=batch, cache_bits=cache_bits, runtime=loader)
    target = device if isinstance(device, Device) else find_device(device)
    shape = model if isinstance(model, ModelShape) else open_shape(model)
    shape.require_text("plan an image classifier by latency or fps, a pipeline by speedup, or compress it by a recipe")
    if loader and loader.name != "jettison":
        shape.require_own_modules(f"{loader.title} would not load this, only jettison.load does")
    if not shape.weights and (refine or losses in ("gradients", "measured")):
        what = f"refine = {refine}" if refine else f"losses = {losses!r}"
        raise UsageError(f"{shape.name} is a shape without weights: {what} needs them, 'prior' does not")
    family, sizes = shape.anatomy.family, list(group_sizes)
    units = find_units(shape.anatomy)
    shared = shape.anatomy.tied and loader is not None and loader.format.tied
    groups = tie(units, loader, shared)
    open_to = {unit: choices(unit, family, bits, sizes, recovery, loader, shared) for unit in units}
    options = [  # per group the choices that are open to all of its units
        [choice for choice in open_to[group[0]] if all(choice in open_to[unit] for unit in group)] or [Choice(16)]
        for group in groups
    ]

    def cost_of(unit: Unit, choice: Choice) -> np.ndarray:
        packed = choice.grid is not None  # an embedding is packed only where it is shared
        cost = step_cost(unit_operators(shape, unit, choice, setting, shared=packed), target)
        return np.array((cost.seconds, cost.memory))

    rest = step_cost(fixed_operators(shape, units, setting), target)
    problem = Problem(
        groups=tuple(groups),
        choices=tuple(map(tuple, options)),
        losses=_table(groups, options, lambda unit, choice: 0.0),
        costs=_table(groups, options, cost_of),
        rest=(rest.seconds, rest.memory),
        time=inf if tps is None else batch / tps,
        memory=min(inf if limit is None else limit, target.memory),
    )
    if not feasible(problem):  # checked before losses are measured, which may take long
        raise UsageError(_infeasible(problem, shape, target, setting))
    # Whether the model meets the budget as it is, all in 16 bits.
    needless = problem.fits(tuple(of.index(Choice(16)) if Choice(16) in of else 0 for of in options))
    loss_of, losses = _losses(shape, open_to, "prior" if needless else losses)
    problem = replace(problem, losses=_table(groups, options, loss_of))
    picks = search(problem)
    measured, passed = (), ()
    if refine:
        picks, history = _refine(shape, problem, picks, refine, seed)
        measured = tuple(history)
    elif not needless and (quicker := quickest(problem, picks)) != picks:  # 16 bits lose exactly nothing: no estimate
        passed, picks = picks, quicker
    recipe = changed(to_recipe(problem.assignment(picks), f"{Path(shape.name).name} for {target.name}"), changes)
    result = Plan(shape, target, setting, problem, picks, recipe, losses, loss_of, measured, passed)
    if missed := misses(result.cost, problem, target):
        raise UsageError(f"with {', '.join(changes)} the plan misses the budget: {'; '.join(missed)}")
    return replace(result, recipe=replace(recipe, why=tuple(_why(result))))


def check_losses(losses: str, refine: int) -> None:
    """Raise UsageError if ``losses`` is no known name or ``refine`` is out of range."""
    if losses not in LOSSES:
        raise UsageError(f"losses = {shown(losses)}: {', '.join(LOSSES)} are valid")
    check_number("refine", refine, 0, MOST_PLANS, whole=True)


def _table(groups: Iterable[Sequence[Unit]], options: Iterable[Sequence[Choice]], of: Callable) -> tuple:
    """Return, per group and choice, the sum of ``of(unit, choice)`` over the units of the group."""
    rows = (
        [sum(of(unit, choice) for unit in group) for choice in open_to]
        for group, open_to in zip(groups, options, strict=True)
    )
    return tuple(tuple(row) for row in rows)


Losses = Callable[[Unit, Choice], float]


def _losses(shape: ModelShape, open_to: dict[Unit, list[Choice]], kind: str) -> tuple[Losses, str]:
    """Return the function that gives the expected loss of a unit under a choice, and the source of these losses."""
    blocks = shape.anatomy.blocks
    head = next((unit for unit in open_to if unit.role == "head"), None)
    table: dict[str, dict] = {}
    if kind != "prior":
        parts = {unit.name: unit.linears for unit in open_to if unit.role != "embed"}
        grids = {
            unit.name: list(dict.fromkeys(choice.grid for choice in options if choice.grid))
            for unit, options in open_to.items()
        }
        table, kind = _model_losses(shape, parts, grids, kind)

    def loss(unit: Unit, choice: Choice) -> float:
        if choice.grid is None:
            return 0.0
        if unit.role == "embed":  # it shares the head's codes, and no figures for embeddings are known
            unit = head
        depth = None if unit.block is None else unit.block / max(1, blocks - 1)
        full = table.get(unit.name, {}).get(choice.grid)
        full = prior_loss(unit.role, depth, blocks, choice.grid, unit.columns) if full is None else full
        return full * recovered_part() if choice.rank and choice.bits == 2 else full

    return loss, kind


def _model_losses(shape: ModelShape, parts: dict, grids: dict, kind: str) -> tuple[dict[str, dict], str]:
    """Return losses that were measured on this model, by part and grid, and their kind: ``prior`` if there are none."""
    if kind == "auto" and not (shape.weights and any_known()):
        return {}, "prior"
    from jettison.pipeline.losses import find_losses  # may run the model: torch takes seconds to import

    return find_losses(shape, parts, grids, kind)


def misses(cost: Cost, problem: Problem, device: Device) -> list[str]:
    """Return a phrase for every budget that a cost does not meet; empty if it meets all."""
    phrases, rounding = [], 1 + 1e-9
    if cost.seconds > problem.time * rounding:
        phrases.append(
            f"{format_rate(cost.tokens_per_second)} tokens/s, {format_rate(cost.tokens / problem.time)} asked"
        )
    if cost.memory > problem.memory * rounding:
        whose = f"{device.name} has" if problem.memory == device.memory else "asked:"
        phrases.append(f"{format_bytes(cost.memory)}, {whose} {format_bytes(problem.memory)}")
    return phrases


def _infeasible(problem: Problem, shape: ModelShape, device: Device, setting: Setting) -> str:
    """Return the message that no plan meets the budgets, and what would be possible."""
    rate = lambda seconds: f"{format_rate(setting.batch / seconds)} tokens/s"
    smallest, fastest = (problem.cost(least(problem.within(), kind)) for kind in (1, 0))
    own = problem.memory == device.memory
    budgets = [rate(problem.time)] if problem.time < inf else []
    budgets += [format_bytes(problem.memory) + (f", which {device.name} has" if own else "")]
    limits = [f"the smallest takes {format_bytes(smallest[1])}, the fastest runs at {rate(fastest[0])}"]
    if smallest[1] <= problem.memory and fastest[0] <= problem.time:  # either budget could be met alone
        fastest_within = problem.cost(least(problem.within(memory=problem.memory), 0))
        limits.append(f"within {format_bytes(problem.memory)} at most {rate(fastest_within[0])} are feasible")
    return (
        f"no plan meets the budget of {' and '.join(budgets)} for {shape.name} on {device.name} "
        f"at {setting.context} tokens of context: {'; '.join(limits)}"
    )


def _refine(
    shape: ModelShape, problem: Problem, picks: Picks, evaluations: int, seed: int
) -> tuple[Picks, list[float]]:
    from jettison.pipeline.losses import unseen_bench  # runs the model: torch takes seconds to import
    from jettison.planning.refine import refine

    return refine(problem, picks, unseen_bench(shape), evaluations, seed)


def _why(plan: Plan) -> list[str]:
    """Return the reasons that the recipe records: prediction, refinement, and the presets that come close."""
    source = {
        "prior": "a prior fitted on scribe, not measured on this model",
        "gradients": "second order, from gradients",
        "measured": "measured part by part",
    }[plan.losses]
    reasons = [
        f"predicted: {format_rate(plan.cost.tokens_per_second)} tokens/s, {format_bytes(plan.cost.memory)} "
        f"at {plan.setting.context} tokens of context; expected loss {plan.loss:.3g} nats per token ({source})"
    ]
    if plan.passed:
        seconds, loss = plan.problem.cost(plan.passed)[0], plan.problem.loss(plan.passed)
        reasons.append(
            f"the least expected loss, {loss:.3g} at {format_rate(plan.setting.batch / seconds)} tokens/s, "
            "cannot be told apart from this plan's: the faster plan was taken"
        )
    if plan.measured:
        reasons.append(
            f"refined: {len(plan.measured)} plans measured on unseen text, "
            f"KL from {plan.measured[0]:.4g} to {min(plan.measured):.4g}"
        )
    for other in plan.alternatives:
        if other.misses and other.loss < plan.loss:
            reasons.append(f"{other.name} would lose less but misses the budget: {'; '.join(other.misses)}")
        elif not other.misses:
            reasons.append(f"{other.name} would fit too, expected loss {other.loss:.3g}")
            break
    if plan.setting.runtime and plan.setting.runtime.no_writer:
        reasons.append(f"note: {plan.setting.runtime.no_writer}")
    return reasons
