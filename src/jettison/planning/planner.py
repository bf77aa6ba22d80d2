"""From a device and a budget to a recipe with reasons, from the config of a model alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np

from jettison.core.bytesize import format_bytes, parse_bytes
from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number, check_seed, format_rate
from jettison.devices.device import Device, find_device
from jettison.devices.roofline import Cost, step_cost
from jettison.formats.runtimes import find_runtime, illegal
from jettison.graph.folder import open_shape
from jettison.graph.shape import ModelShape
from jettison.planning.cost import CONTEXT, Setting, fixed_operators, planned_all, predict, unit_operators
from jettison.planning.groups import BITS, GROUP_SIZES, Choice, Unit, choices, find_units, tie
from jettison.planning.search import Picks, Problem, feasible, least, pareto, quickest, search
from jettison.planning.writing import changed, check_changes, to_recipe
from jettison.recipe.recipe import Recipe, load_recipe, preset_names
from jettison.statistics.known import any_known
from jettison.statistics.prior import prior_loss, recovered_part

LOSSES = ("auto", "prior", "gradients", "measured")
RATES = (1e-6, 1e9)  # tokens per second that may be asked for
MOST_PLANS = 100_000  # that refinement measures


@dataclass(frozen=True)
class Alternative:
    """Another recipe under the same budget. misses: why it does not fit, empty if it does."""

    name: str
    cost: Cost
    loss: float
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What was asked, what was chosen, and what else there is. loss: expected, in nats per token."""

    shape: ModelShape
    device: Device
    setting: Setting
    problem: Problem
    picks: Picks
    recipe: Recipe
    losses: str  # where the expected losses are from
    loss_of: Callable[[Unit, Choice], float]
    measured: tuple[float, ...] = ()  # KL of the plans that refinement tried
    passed: Picks = ()  # over: with the least expected loss, which cannot be told from that of a faster plan

    @property
    def loss(self) -> float:
        return self.problem.loss(self.picks)

    @property
    def assignment(self) -> dict[Unit, Choice]:
        return self.problem.assignment(self.picks)

    @cached_property
    def cost(self) -> Cost:
        return predict(self.shape, self.recipe, self.device, self.setting)

    @cached_property
    def alternatives(self) -> list[Alternative]:
        """The presets, under the same losses and costs; the least expected loss first."""
        found = [self._alternative(load_recipe(name)) for name in preset_names()]
        return sorted(found, key=lambda each: each.loss)

    def _alternative(self, recipe: Recipe) -> Alternative:
        cost = predict(self.shape, recipe, self.device, self.setting)
        chosen = planned_all(list(self.assignment), recipe, self.setting.runtime)
        found = misses(cost, self.problem, self.device)
        if self.setting.runtime is not None:
            grids = {
                linear.name: choice.grid for unit, choice in chosen.items() for linear in unit.linears if choice.grid
            }
            found += illegal(self.setting.runtime, self.shape.anatomy, grids)
        return Alternative(recipe.name, cost, sum(map(self.loss_of, *zip(*chosen.items(), strict=True))), tuple(found))

    def front(self, points: int = 16) -> list[tuple[float, float, float, Picks]]:
        """Plans that nothing beats under the time budget: bytes, tokens per second, loss, choices."""
        tokens = self.setting.batch
        found = []
        for picks in pareto(self.problem, points):
            seconds, memory = self.problem.cost(picks)
            found.append((float(memory), tokens / float(seconds), self.problem.loss(picks), picks))
        return found


def plan(model: str | Path, **options) -> Recipe:
    """The recipe of ``make_plan``, with the reasons in ``why``."""
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
    """Bits and group size for every matrix: the least expected loss that meets the budgets.

    model: a known shape such as ``qwen3-4b``, a config.json, a model folder or a hub id. tps: tokens per second to
    reach in decoding, all sequences of the batch together, each with ``context`` tokens in its cache. memory: bytes, or
    a string such as "3GB", for weights, LoRA adapters and the cache of keys and values. runtime: only what it loads
    (see formats/runtimes.yaml). recovery: whether 2 bits with a LoRA adapter, to be recovered, may be chosen.
    losses: ``prior`` (role, depth and bits, fitted on scribe), ``gradients`` or ``measured`` (see ``sensitivity``: both
    read the weights), or ``auto``: what an earlier run has found for this model, else the prior. refine: how many plans
    around the best one are measured. changes: ``verb.option=value``, for the recipe.

    Of plans whose expected losses cannot be told apart, the fastest is taken (see ``search.quickest``), unless the
    model meets the budget as it is.

    Raises UsageError if no budget is given, one makes no sense, or nothing meets them; the message then says what would
    be feasible.
    """
    limit = check_budgets(tps, memory)
    check_losses(losses, refine)
    check_changes(changes := list(changes))
    check_seed(seed)
    legal = None if runtime is None else find_runtime(runtime)
    setting = Setting(context=context, batch=batch, cache_bits=cache_bits, runtime=legal)
    target = device if isinstance(device, Device) else find_device(device)
    shape = model if isinstance(model, ModelShape) else open_shape(model)
    if not shape.weights and (refine or losses in ("gradients", "measured")):
        what = f"refine = {refine}" if refine else f"losses = {losses!r}"
        raise UsageError(f"{shape.name} is a shape without weights: {what} needs them, 'prior' does not")
    family, sizes = shape.anatomy.family, list(group_sizes)
    units = find_units(shape.anatomy)
    groups = tie(units, legal)
    open_to = {unit: choices(unit, family, bits, sizes, recovery, legal) for unit in units}
    options = [
        [choice for choice in open_to[group[0]] if all(choice in open_to[unit] for unit in group)] or [Choice(16)]
        for group in groups
    ]

    def cost_of(unit: Unit, choice: Choice) -> np.ndarray:
        cost = step_cost(unit_operators(shape, unit, choice, setting), target)
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
    if not feasible(problem):  # before losses are found, which may take long
        raise UsageError(_infeasible(problem, shape, target, setting))
    needless = problem.fits(tuple(of.index(Choice(16)) if Choice(16) in of else 0 for of in options))
    loss_of, losses = _losses(shape, open_to, "prior" if needless else losses)
    problem = replace(problem, losses=_table(groups, options, loss_of))
    picks = search(problem)
    measured, passed = (), ()
    if refine:
        picks, history = _refine(shape, problem, picks, refine, seed)
        measured = tuple(history)
    elif not needless and (quicker := quickest(problem, picks)) != picks:  # what loses nothing is no estimate
        passed, picks = picks, quicker
    recipe = changed(to_recipe(problem.assignment(picks), f"{Path(shape.name).name} for {target.name}"), changes)
    found = Plan(shape, target, setting, problem, picks, recipe, losses, loss_of, measured, passed)
    if missed := misses(found.cost, problem, target):
        raise UsageError(f"with {', '.join(changes)} the plan misses the budget: {'; '.join(missed)}")
    return replace(found, recipe=replace(recipe, why=tuple(_why(found))))


def check_budgets(tps: float | None, memory: str | float | None, needed: bool = True) -> float | None:
    """The bytes of ``memory``. Raises UsageError for budgets that are not valid, and where one is ``needed``."""
    if needed and tps is None and memory is None:
        raise UsageError("a plan needs a budget: give tokens per second (tps), memory, or both")
    if tps is not None:
        check_number("tps", tps, *RATES)
    return None if memory is None else parse_bytes(memory)


def check_losses(losses: str, refine: int) -> None:
    """Raises UsageError for names and numbers that are not valid."""
    if losses not in LOSSES:
        raise UsageError(f"losses = {shown(losses)}: {', '.join(LOSSES)} are valid")
    check_number("refine", refine, 0, MOST_PLANS, whole=True)


def _table(groups: Iterable[Sequence[Unit]], options: Iterable[Sequence[Choice]], of: Callable) -> tuple:
    """Per group and choice the sum of ``of(unit, choice)`` over the units of the group."""
    rows = (
        [sum(of(unit, choice) for unit in group) for choice in each]
        for group, each in zip(groups, options, strict=True)
    )
    return tuple(tuple(row) for row in rows)


Losses = Callable[[Unit, Choice], float]


def _losses(shape: ModelShape, open_to: dict[Unit, list[Choice]], kind: str) -> tuple[Losses, str]:
    """The expected loss of a unit under a choice, and where it is from."""
    blocks = shape.anatomy.blocks
    table: dict[str, dict] = {}
    if kind != "prior":
        parts = {unit.name: unit.linears for unit in open_to if unit.role != "embed"}
        grids = {unit.name: list(dict.fromkeys(each.grid for each in of if each.grid)) for unit, of in open_to.items()}
        table, kind = _found_losses(shape, parts, grids, kind)

    def loss(unit: Unit, choice: Choice) -> float:
        if choice.grid is None:
            return 0.0
        depth = None if unit.block is None else unit.block / max(1, blocks - 1)
        full = table.get(unit.name, {}).get(choice.grid)
        full = prior_loss(unit.role, depth, blocks, choice.grid, unit.columns) if full is None else full
        return full * recovered_part() if choice.rank and choice.bits == 2 else full

    return loss, kind


def _found_losses(shape: ModelShape, parts: dict, grids: dict, kind: str) -> tuple[dict[str, dict], str]:
    """Losses that the model itself has shown, by part and grid, and their kind: ``prior`` where there are none."""
    if kind == "auto" and not (shape.weights and any_known()):
        return {}, "prior"
    from jettison.pipeline.losses import find_losses  # may run the model: torch takes seconds to import

    return find_losses(shape, parts, grids, kind)


def misses(cost: Cost, problem: Problem, device: Device) -> list[str]:
    """Why a cost does not meet the budgets, in words."""
    found, rounding = [], 1 + 1e-9
    if cost.seconds > problem.time * rounding:
        found.append(f"{format_rate(cost.tokens_per_second)} tokens/s, {format_rate(cost.tokens / problem.time)} asked")
    if cost.memory > problem.memory * rounding:
        whose = f"{device.name} has" if problem.memory == device.memory else "asked:"
        found.append(f"{format_bytes(cost.memory)}, {whose} {format_bytes(problem.memory)}")
    return found


def _infeasible(problem: Problem, shape: ModelShape, device: Device, setting: Setting) -> str:
    """What was asked, and what is possible."""
    rate = lambda seconds: f"{format_rate(setting.batch / seconds)} tokens/s"
    smallest, fastest = (problem.cost(least(problem.within(), kind)) for kind in (1, 0))
    own = problem.memory == device.memory
    asked = [rate(problem.time)] if problem.time < inf else []
    asked += [format_bytes(problem.memory) + (f", which {device.name} has" if own else "")]
    words = [f"the smallest takes {format_bytes(smallest[1])}, the fastest runs at {rate(fastest[0])}"]
    if smallest[1] <= problem.memory and fastest[0] <= problem.time:  # each could be met alone
        alone = problem.cost(least(problem.within(memory=problem.memory), 0))
        words.append(f"within {format_bytes(problem.memory)} at most {rate(alone[0])} are feasible")
    return (
        f"no plan meets the budget of {' and '.join(asked)} for {shape.name} on {device.name} "
        f"at {setting.context} tokens of context: {'; '.join(words)}"
    )


def _refine(
    shape: ModelShape, problem: Problem, picks: Picks, evaluations: int, seed: int
) -> tuple[Picks, list[float]]:
    from jettison.pipeline.losses import unseen_bench  # runs the model: torch takes seconds to import
    from jettison.planning.refine import refine

    return refine(problem, picks, unseen_bench(shape), evaluations, seed)


def _why(found: Plan) -> list[str]:
    source = {
        "prior": "a prior fitted on scribe, not measured on this model",
        "gradients": "second order, from gradients",
        "measured": "measured part by part",
    }[found.losses]
    reasons = [
        f"predicted: {format_rate(found.cost.tokens_per_second)} tokens/s, {format_bytes(found.cost.memory)} "
        f"at {found.setting.context} tokens of context; expected loss {found.loss:.3g} nats per token ({source})"
    ]
    if found.passed:
        seconds, loss = found.problem.cost(found.passed)[0], found.problem.loss(found.passed)
        reasons.append(
            f"the least expected loss, {loss:.3g} at {format_rate(found.setting.batch / seconds)} tokens/s, "
            "cannot be told from this one: the faster plan was taken"
        )
    if found.measured:
        reasons.append(
            f"refined: {len(found.measured)} plans measured on unseen text, "
            f"KL from {found.measured[0]:.4g} to {min(found.measured):.4g}"
        )
    for other in found.alternatives:
        if other.misses and other.loss < found.loss:
            reasons.append(f"{other.name} would lose less but misses the budget: {'; '.join(other.misses)}")
        elif not other.misses:
            reasons.append(f"{other.name} would fit too, expected loss {other.loss:.3g}")
            break
    if found.setting.runtime and found.setting.runtime.no_writer:
        reasons.append(f"note: {found.setting.runtime.no_writer}")
    return reasons
