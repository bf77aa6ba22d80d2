"""Seconds and bytes of a model under a recipe on a device, from its config alone.

The roofline of Recover-LoRA's planning (arXiv:2606.04238); what it counts, and how, is our reconstruction. Weights with
their scales and zero points, LoRA adapters, activations, the cache of keys and values with its own bits and windows,
experts (by those a token uses for arithmetic, by the distinct ones a batch is expected to use for bytes), and what 2:4
leaves out where something runs it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jettison.core.errors import UsageError, shown
from jettison.core.numbers import check_number
from jettison.devices.device import Device
from jettison.devices.roofline import Cost, Operator, step_cost
from jettison.encodings.grid import Grid
from jettison.formats.runtimes import Runtime, fitted
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
    """What a model is asked to do.

    context: tokens in the cache of each sequence. batch: sequences. rows: tokens of each sequence that go through at
    once, 1 in decoding. cache_bits: of keys and values (below 16, a 16-bit scale per head and token comes on top).
    dropped: blocks that are left out. runtime: in whose format weights are stored; None: as codes and scales are.
    semi_structured: 2:4 in 16 bits runs as PyTorch's semi-structured tensors, as on NVIDIA GPUs from Ampere on; for
    some hundred rows and more, since with few those are slower than dense ones (``benchmarks/kernels/gpu.py``).
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
    """A step of decoding: one token for every sequence of the batch."""
    found = operators(shape, recipe, setting)
    return step_cost(found, device, tokens=setting.batch * setting.rows)


def predict_prefill(shape: ModelShape, recipe: Recipe, device: Device, setting: Setting = Setting()) -> Cost:
    """Reading a prompt of ``setting.context`` tokens, at least one, into an empty cache."""
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
    """Speculative decoding: the model without the blocks ``dropped`` drafts ``draft`` tokens, each of which the whole
    model accepts with probability ``rate``, and checks them in one step (arXiv:2211.17192, section 3)."""
    if not 0 <= rate < 1:
        raise UsageError(f"acceptance rate = {rate}: it lies between 0 and 1, 1 excluded")
    small = predict(shape, recipe, device, replace(setting, dropped=setting.dropped | dropped))
    check = predict(shape, recipe, device, replace(setting, rows=draft + 1))
    expected = (1 - rate ** (draft + 1)) / (1 - rate) * setting.batch
    return Cost(draft * small.seconds + check.seconds, draft * small.moved + check.moved, check.memory, expected)


def planned(
    unit: Unit,
    recipe: Recipe,
    runtime: Runtime | None = None,
    semi_structured: bool = False,
    experts: Sequence[Sequence[Linear]] = (),
) -> Choice:
    """What a recipe makes of a unit. One that has a LoRA adapter in part counts as one that has it, one that is pruned
    in part as one that is not. experts: per quantize step, one of each of the model's units that it quantizes: they
    share a grid."""
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
    """``planned`` of every unit of a model."""
    firsts = [unit.linears[0] for unit in units if unit.experts]
    matched = lambda step: [each for each in firsts if step.where.matches(each.roles, each.block)]
    experts = [matched(step) for step in recipe.of("quantize")]
    return {unit: planned(unit, recipe, runtime, semi_structured, experts) for unit in units}


def _sparse_bits(unit: Unit, recipe: Recipe, grid: Grid | None) -> float | None:
    """Bits per weight as they run, if all of the unit is pruned to a pattern that something runs."""
    found: set[float | None] = set()
    for linear in unit.kinds:
        steps = [step for step in recipe.of("prune") if step.claims(linear.roles, linear.block)]
        found.add(steps[0].pattern.packed_bits(grid) if steps else None)
    return found.pop() if len(found) == 1 else None


def adapter_rank(linear: Linear, recipe: Recipe) -> int:
    """The rank of the LoRA adapter that recovery will leave beside a linear, 0 for none."""
    for step in recipe.of("recover"):
        if "lora" in step.options["train"] and step.where.matches(linear.roles, linear.block):
            return step.options["rank"]
    return 0


def stored_bits(unit: Unit, choice: Choice) -> float:
    """Bits per weight with scales and zero points."""
    return choice.stored or (16.0 if choice.grid is None else choice.grid.bits_per_weight(unit.columns))


def operators(shape: ModelShape, recipe: Recipe, setting: Setting) -> list[Operator]:
    """Everything a step does."""
    units, found = find_units(shape.anatomy), []
    for unit, choice in planned_all(units, recipe, setting.runtime, setting.semi_structured).items():
        if unit.block not in setting.dropped:
            of_kind = {(linear.roles, linear.block): adapter_rank(linear, recipe) for linear in unit.kinds}
            ranks = [of_kind[linear.roles, linear.block] for linear in unit.linears]
            found += unit_operators(shape, unit, choice, setting, ranks)
    return found + fixed_operators(shape, units, setting)


def unit_operators(
    shape: ModelShape, unit: Unit, choice: Choice, setting: Setting, ranks: Sequence[int] = ()
) -> Iterator[Operator]:
    """A unit, and its LoRA adapter if it has one. ranks: of the LoRA adapter of each linear, where they differ."""
    tokens = setting.batch * (1 if unit.role == "head" else setting.rows)  # of a prompt, the last token has a head
    rows, used, passes = sum(linear.rows for linear in unit.linears), 1.0, 1.0
    if unit.experts:
        passes = shape.sizes.experts_per_token  # experts that a token goes through
        used = 1 - (1 - passes / unit.experts) ** tokens  # share of them that some token is expected to go through
        rows /= unit.experts
    size = unit.weights * stored_bits(unit, choice) / 8
    if unit.role == "embed":
        row = ACTIVATION_BYTES * unit.columns * tokens
        yield Operator(unit.name, unit.role, stored=size, moved=2 * row)
        return
    through = ACTIVATION_BYTES * tokens * passes
    stored = 0.0 if unit.role == "head" and shape.anatomy.tied and choice.bits == 16 else size  # it is the embedding
    each = 2 * tokens * passes * rows * unit.columns
    yield Operator(unit.name, unit.role, stored, size * used + through * (unit.columns + rows), each)
    if choice.rank:
        ranks = ranks or [choice.rank] * len(unit.linears)
        numbers = sum(rank * (linear.rows + linear.columns) for rank, linear in zip(ranks, unit.linears, strict=True))
        aside = through * sum(ranks) / max(1, unit.experts)
        flops = 2 * tokens * passes * numbers / max(1, unit.experts)
        size = ADAPTER_BYTES * numbers
        yield Operator(f"{unit.name} LoRA adapter", "LoRA adapters", size, size * used + 2 * aside, flops, launches=2)


def fixed_operators(shape: ModelShape, units: list[Unit], setting: Setting) -> list[Operator]:
    """What bits do not change: attention over the cache, norms, and the rest."""
    sizes, anatomy = shape.sizes, shape.anatomy
    blocks = [block for block in range(anatomy.blocks) if block not in setting.dropped]
    found, tokens = [], setting.batch * setting.rows
    width = sizes.head_width
    per_token = 2 * sizes.key_value_heads * (width * setting.cache_bits + (16 if setting.cache_bits < 16 else 0)) / 8
    for block, window in enumerate(sizes.windows):
        if block not in blocks:
            continue
        kept = min(setting.context + setting.rows - 1, window)  # in the cache of each sequence, once the step is done
        seen = _seen(setting, window)
        moved = setting.batch * (
            per_token * (kept + setting.rows) + 2 * ACTIVATION_BYTES * setting.rows * sizes.heads * width
        )
        flops = 4 * setting.batch * seen * sizes.heads * width
        found.append(Operator(f"attention {block}", "attention", setting.batch * per_token * kept, moved, flops))
    rest = UNQUANTIZED_BYTES * _rest(anatomy, units) * len(blocks) / max(1, anatomy.blocks)
    moved = rest + 3 * ACTIVATION_BYTES * tokens * sizes.hidden * SMALL_OPERATORS * len(blocks)
    found.append(Operator("norms and the rest", "rest", rest, moved, launches=SMALL_OPERATORS * len(blocks)))
    return found


def _rest(anatomy, units: list[Unit]) -> int:
    """Parameters of no unit. A tied head is one with the embedding."""
    counted = sum(unit.weights for unit in units if not (unit.role == "head" and anatomy.tied))
    return max(0, anatomy.parameters - counted)


def _seen(setting: Setting, window: float) -> float:
    """Pairs of a token and one it attends to, per sequence: each sees the cache, itself and those before it."""
    first, last = setting.context + 1, setting.context + setting.rows
    if last <= window:
        return setting.rows * (first + last) / 2
    growing = max(0, window - first + 1)
    return growing * (first + window) / 2 + (setting.rows - growing) * window
