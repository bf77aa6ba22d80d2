"""Seconds and bytes of a model under a recipe on a device, computed from the model's config alone.

This is the roofline of Recover-LoRA's planning (arXiv:2606.04238). What is counted, and how, is our reconstruction:

- weights with their scales and zero points, LoRA adapters, activations;
- the cache of keys and values, with its own bits and with sliding windows;
- experts: arithmetic of those that a token uses, bytes of the distinct ones that a batch is expected to use;
- the weights that a 2:4 pattern leaves out, where the runtime or the device makes use of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number
from jettison.devices.device import Device
from jettison.devices.roofline import Cost, Operator, step_cost
from jettison.encodings.grid import Grid
from jettison.formats.runtimes import Runtime, fitted
from jettison.formats.tied import one_matrix
from jettison.graph.anatomy import Linear
from jettison.graph.shape import ModelShape
from jettison.planning.groups import Choice, Unit, find_units
from jettison.recipe.recipe import Recipe

CONTEXT = 2048
ACTIVATION_BYTES = ADAPTER_BYTES = UNQUANTIZED_BYTES = 2
SMALL_OPERATORS = 6  # per block: two norms, rotary embedding, activation, two additions; each moves about 3 vectors
CACHE_BITS = (4, 8, 16)
MOST = 10**9  # tokens of context, sequences, rows


@dataclass(frozen=True)
class Setting:
    """The work whose cost is predicted: a step of decoding or of reading a prompt.

    context: tokens in the cache of each sequence.
    batch: number of sequences.
    rows: tokens of each sequence that go through the model at once, 1 in decoding.
    cache_bits: bits of keys and values; below 16, a 16-bit scale per head and token is added.
    dropped: blocks that are left out.
    runtime: the runtime in whose format weights are stored; None counts codes, scales and zero points.
    semi_structured: whether 2:4 in 16 bits runs as PyTorch's semi-structured tensors, as on NVIDIA GPUs from Ampere on.
        Set it only for a few hundred rows and more: with few rows they are slower than dense tensors
        (``benchmarks/kernels/gpu.py``).
    """

    context: int = CONTEXT
    batch: int = 1
    rows: int = 1
    cache_bits: int = 16
    dropped: frozenset[int] = frozenset()
    runtime: Runtime | None = None
    semi_structured: bool = False

    def __post_init__(self):
        for name, least in (("context", 0), ("batch", 1), ("rows", 1)):
            check_number(name, getattr(self, name), least, MOST, whole=True)
        if self.cache_bits not in CACHE_BITS:
            raise UsageError(f"cache_bits = {shown(self.cache_bits)}: {', '.join(map(str, CACHE_BITS))} are valid")


def predict(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting = Setting()) -> Cost:
    """Predict the cost of one step: ``setting.rows`` tokens, 1 in decoding, for every sequence of the batch."""
    step = operators(shape, recipe, setting)
    return step_cost(step, device, tokens=setting.batch * setting.rows)


def predict_prefill(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting = Setting()) -> Cost:
    """Predict the cost of reading a prompt of ``setting.context`` tokens, at least one, into an empty cache."""
    setting = replace(setting, rows=max(1, setting.context), context=0)
    return predict(shape, recipe, device, setting)


def predict_drafted(
    shape: ModelShape,
    recipe: Recipe,
    device: Device,
    setting: Setting,
    dropped: frozenset[int],
    draft: int,
    rate: float,
) -> Cost:
    """Predict the cost of a round of speculative decoding, in which the model without some blocks is the draft model.

    dropped: blocks that the draft model leaves out.
    draft: number of draft tokens per round; the whole model verifies them in one step.
    rate: probability that the whole model accepts a draft token, in [0, 1).
    Raises UsageError for another rate. Source: arXiv:2211.17192, section 3.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"acceptance rate = {rate}: it lies between 0 and 1, 1 excluded")
    small = predict(shape, recipe, device, replace(setting, dropped=setting.dropped | dropped))
    check = predict(shape, recipe, device, replace(setting, rows=draft + 1))
    expected = (1 - rate ** (draft + 1)) / (1 - rate) * setting.batch  # tokens per round
    return Cost(draft * small.seconds + check.seconds, draft * small.moved + check.moved, check.memory, expected)


def planned(
    unit: Unit,
    recipe: Recipe,
    runtime: Runtime | None = None,
    semi_structured: bool = False,
    experts: Sequence[Sequence[Linear]] = (),
) -> Choice:
    """Return the choice that a recipe makes for a unit.

    A unit counts as having a LoRA adapter if any of its linears has one, and as pruned only if all of them are.
    experts: per quantize step, one linear of each expert unit that the step quantizes; these units share a grid.
    """
    linear, rank = unit.linears[0], max(adapter_rank(linear, recipe) for linear in unit.kinds)
    for number, step in enumerate(recipe.of("quantize")):
        if step.where.matches(linear.roles, linear.block):
            others = experts[number] if experts and unit.experts else ()
            grid = fitted(step.grid, others or unit.linears, runtime)
            stored = runtime.bits_per_weight(linear, grid) if runtime else 0.0
            if runtime is None or runtime.name == "jettison":
                stored = _sparse_bits(unit, recipe, grid) or stored
            return Choice(grid.bits, grid.group_size, rank, grid.symmetric, stored)
    return Choice(16, rank=rank, stored=(_sparse_bits(unit, recipe, None) if semi_structured else None) or 0.0)


def planned_all(
    units: Sequence[Unit], recipe: Recipe, runtime: Runtime | None = None, semi_structured: bool = False
) -> dict[Unit, Choice]:
    """Return the choice that a recipe makes for every unit of a model, see ``planned``."""
    firsts = [unit.linears[0] for unit in units if unit.experts]
    matched = lambda step: [linear for linear in firsts if step.where.matches(linear.roles, linear.block)]
    experts = [matched(step) for step in recipe.of("quantize")]
    return {unit: planned(unit, recipe, runtime, semi_structured, experts) for unit in units}


def _sparse_bits(unit: Unit, recipe: Recipe, grid: Grid | None) -> float | None:
    """Return the packed bits per weight if the whole unit is pruned to one pattern that a kernel makes use of.

    None otherwise.
    """
    widths: set[float | None] = set()
    for linear in unit.kinds:
        steps = [step for step in recipe.of("prune") if step.claims(linear.roles, linear.block)]
        widths.add(steps[0].pattern.packed_bits(grid) if steps else None)
    return widths.pop() if len(widths) == 1 else None


def adapter_rank(linear: Linear, recipe: Recipe) -> int:
    """Return the rank of the LoRA adapter that recovery will add to a linear, 0 for none."""
    for step in recipe.of("recover"):
        if "lora" in step.options["train"] and step.where.matches(linear.roles, linear.block):
            return step.options["rank"]
    return 0


def stored_bits(unit: Unit, choice: Choice) -> float:
    """Return the bits per weight of a unit under a choice, with scales and zero points."""
    return choice.stored or (16.0 if choice.grid is None else choice.grid.bits_per_weight(unit.columns))


def operators(shape: ModelShape, recipe: Recipe, setting: Setting) -> list[Operator]:
    """Return all operators of a step: those of the units, and those that no choice of bits changes."""
    units, listed = find_units(shape.anatomy), []
    shared = one_matrix(shape.anatomy, recipe, setting.runtime)
    for unit, choice in planned_all(units, recipe, setting.runtime, setting.semi_structured).items():
        if unit.block not in setting.dropped:
            rank_of = {(linear.roles, linear.block): adapter_rank(linear, recipe) for linear in unit.kinds}
            ranks = [rank_of[linear.roles, linear.block] for linear in unit.linears]
            listed += unit_operators(shape, unit, choice, setting, ranks, shared)
    return listed + fixed_operators(shape, units, setting)


def unit_operators(
    shape: ModelShape, unit: Unit, choice: Choice, setting: Setting, ranks: Sequence[int] = (), shared: bool = False
) -> Iterator[Operator]:
    """Yield the operator of a unit, and the one of its LoRA adapters if it has any.

    ranks: rank of the LoRA adapter of every linear of the unit; empty means ``choice.rank`` for all of them.
    shared: whether the packed head is the embedding too; its bytes are counted with the head.
    """
    tokens = setting.batch * (1 if unit.role == "head" else setting.rows)  # of a prompt, only the last token needs it
    rows, used, passes = sum(linear.rows for linear in unit.linears), 1.0, 1.0
    if unit.experts:
        passes = shape.sizes.experts_per_token  # experts that a token goes through
        used = 1 - (1 - passes / unit.experts) ** tokens  # expected share of the experts that any token goes through
        rows /= unit.experts  # rows of a single expert
    size = unit.weights * stored_bits(unit, choice) / 8  # bytes
    if unit.role == "embed":
        row = ACTIVATION_BYTES * unit.columns * tokens
        stored = 0.0 if shared else size
        yield Operator(unit.name, unit.role, stored, moved=2 * row)  # one row per token is read and written
        return
    through = ACTIVATION_BYTES * tokens * passes  # bytes per column of the activations
    # A tied head in 16 bits is the embedding, whose bytes are counted there.
    stored = 0.0 if unit.role == "head" and shape.anatomy.tied and choice.bits == 16 else size
    flops = 2 * tokens * passes * rows * unit.columns
    yield Operator(unit.name, unit.role, stored, size * used + through * (unit.columns + rows), flops)
    if choice.rank:
        ranks = ranks or [choice.rank] * len(unit.linears)
        numbers = sum(rank * (linear.rows + linear.columns) for rank, linear in zip(ranks, unit.linears, strict=True))
        between = through * sum(ranks) / max(1, unit.experts)  # bytes between the two factors
        flops = 2 * tokens * passes * numbers / max(1, unit.experts)
        size = ADAPTER_BYTES * numbers
        yield Operator(f"{unit.name} LoRA adapter", "LoRA adapters", size, size * used + 2 * between, flops, launches=2)


def fixed_operators(shape: ModelShape, units: list[Unit], setting: Setting) -> list[Operator]:
    """Return the operators that no choice of bits changes: attention over the cache, norms, and the rest."""
    sizes, anatomy = shape.sizes, shape.anatomy
    blocks = [block for block in range(anatomy.blocks) if block not in setting.dropped]
    listed, tokens = [], setting.batch * setting.rows
    width = sizes.head_width
    # Bytes of the keys and values of a token in one block; below 16 bits every head has a 16-bit scale for each.
    per_token = 2 * sizes.key_value_heads * (width * setting.cache_bits + (16 if setting.cache_bits < 16 else 0)) / 8
    for block, window in enumerate(sizes.windows):
        if block not in blocks:
            continue
        kept = min(setting.context + setting.rows - 1, window)  # tokens in the cache of a sequence after the step
        pairs = _attention_pairs(setting, window)
        moved = setting.batch * (
            per_token * (kept + setting.rows) + 2 * ACTIVATION_BYTES * setting.rows * sizes.heads * width
        )
        flops = 4 * setting.batch * pairs * sizes.heads * width  # 2 for scores, 2 for the weighted sum of values
        listed.append(Operator(f"attention {block}", "attention", setting.batch * per_token * kept, moved, flops))
    rest = UNQUANTIZED_BYTES * _other_parameters(anatomy, units) * len(blocks) / max(1, anatomy.blocks)
    moved = rest + 3 * ACTIVATION_BYTES * tokens * sizes.hidden * SMALL_OPERATORS * len(blocks)
    listed.append(Operator("norms and the rest", "rest", rest, moved, launches=SMALL_OPERATORS * len(blocks)))
    return listed


def _other_parameters(anatomy, units: list[Unit]) -> int:
    """Return the number of parameters outside all units. A tied head counts as part of the embedding."""
    counted = sum(unit.weights for unit in units if not (unit.role == "head" and anatomy.tied))
    return max(0, anatomy.parameters - counted)


def _attention_pairs(setting: Setting, window: float) -> float:
    """Return the number of (token, attended token) pairs of a sequence.

    A token attends to the cache, to itself and to the tokens before it, at most ``window`` in all.
    """
    first, last = setting.context + 1, setting.context + setting.rows  # tokens that the first and last row attend to
    if last <= window:
        return setting.rows * (first + last) / 2
    growing = max(0, window - first + 1)  # rows that attend to no more than the window
    return growing * (first + window) / 2 + (setting.rows - growing) * window
