"""Units, which a plan chooses bits for: the linears that runtimes run as one matrix. And the choices of each unit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats.runtimes import Runtime, fitted
from jettison.graph.anatomy import Anatomy, Family, Linear

BITS = (2, 3, 4, 8, 16)
GROUP_SIZES = (32, 64, 128)
ADAPTER_RANK = 8  # rank of the LoRA adapter that recovery adds to a 2-bit matrix


@dataclass(frozen=True)
class Unit:
    """Linears that share their bits: q, k, v; gate and up; the experts of a block.

    role: such as ``qkv``, ``gate_up``, ``expert down``.
    block: index of the block; None for head and embedding.
    """

    name: str
    role: str
    block: int | None
    linears: tuple[Linear, ...]

    def __hash__(self) -> int:  # a hash over hundreds of experts would be slow
        return hash(self.name)

    @cached_property
    def kinds(self) -> tuple[Linear, ...]:
        """One linear for each combination of roles and block; the steps of a recipe match on these."""
        return tuple({(linear.roles, linear.block): linear for linear in self.linears}.values())

    @cached_property
    def weights(self) -> int:
        """The number of weights."""
        return sum(linear.weights for linear in self.linears)

    @cached_property
    def columns(self) -> int:
        """The number of columns, which is the same for all linears of a unit."""
        return self.linears[0].columns

    @cached_property
    def experts(self) -> int:
        """The number of experts whose matrices the unit holds; 0 for a unit that every token goes through."""
        return len({linear.inputs for linear in self.linears}) if "expert" in self.linears[0].roles else 0

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The roles by which a step of a recipe can name the unit."""
        return tuple(dict.fromkeys(role for linear in self.linears for role in linear.roles if role != "expert"))


@dataclass(frozen=True, order=True)
class Choice:
    """How a unit is stored.

    bits: bits per weight; 16 leaves the unit unquantized.
    rank: rank of the LoRA adapter that recovery adds, 0 for none.
    stored: bits per weight in a format that stores a grid in its own way; 0 for codes, scales and zero points.
    """

    bits: int
    group_size: int = 0
    rank: int = 0
    symmetric: bool = True
    stored: float = 0.0

    def __str__(self) -> str:
        group = "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"
        grid = "" if self.bits == 16 else f" {group}" + ("" if self.symmetric else " asym")
        return f"{self.bits}{grid}" + (f" r{self.rank}" if self.rank else "")

    @property
    def grid(self) -> Grid | None:
        """The grid of the codes; None for an unquantized unit."""
        return None if self.bits == 16 else UniformGrid(self.bits, self.group_size, self.symmetric)


def find_units(anatomy: Anatomy) -> list[Unit]:
    """Group all linears of a model, the embedding included, into the units that runtimes run as one matrix."""
    return list(_units(anatomy))


@lru_cache(8)  # planning asks for the units of one model dozens of times
def _units(anatomy: Anatomy) -> tuple[Unit, ...]:
    parts: dict[str, list[Linear]] = {}
    for linear in anatomy:
        parts.setdefault(linear.fused, []).append(linear)
    units = []
    for name, linears in parts.items():
        group, roles = name.rpartition(".")[2], [role for role in linears[0].roles if role != "expert"]
        role = group if group in anatomy.family.fused else "_".join(roles)
        role = f"expert {role}" if "expert" in linears[0].roles else role
        units.append(Unit(name, role, linears[0].block, tuple(linears)))
    return tuple(units)


def tie(units: list[Unit], runtime: Runtime | None, shared: bool = False) -> list[tuple[Unit, ...]]:
    """Group the units that must share their choice.

    These are units of one role in one block, which a recipe cannot tell apart (in a model that is read generically),
    and experts, where a runtime needs one grid for all experts of a block or of the model.
    shared: whether head and embedding are one packed matrix, see ``formats.tied``.
    """
    share = "fused" if runtime is None else runtime.format.share
    groups: dict[tuple, list[Unit]] = {}
    for unit in units:
        key = (unit.role, unit.block)
        if share != "fused" and unit.experts:
            key = ("experts", unit.block if share == "block" else None)
        if shared and unit.role in ("embed", "head"):
            key = ("tied", None)
        groups.setdefault(key, []).append(unit)
    return list(map(tuple, groups.values()))


def choices(
    unit: Unit,
    family: Family,
    bits: Iterable[int] = BITS,
    group_sizes: Iterable[int] = GROUP_SIZES,
    recovery: bool = False,
    runtime: Runtime | None = None,
    shared: bool = False,
) -> list[Choice]:
    """Return the choices that are open to a unit; 16 bits if no other is possible.

    The embedding stays unquantized: it is looked up and not multiplied.
    group_sizes: group sizes to try; one that does not divide a row is replaced, see ``runtimes.fitted``.
    recovery: whether to offer 2 bits with a LoRA adapter too.
    shared: whether the embedding shares the head's packed matrix, and so its choices.
    runtime: offer only grids that this runtime loads. For bits that it loads in none of ``group_sizes``, offer the
        group sizes that it does load.
    """
    bits, sizes = list(bits), list(group_sizes)
    grids = {
        fitted(UniformGrid(width, size), unit.linears, runtime): None for width in bits if width != 16 for size in sizes
    }
    quantized = [Choice(grid.bits, grid.group_size) for grid in grids]
    if unit.role == "embed" and not shared:
        quantized = []
    elif runtime is not None:
        quantized = _loadable(unit, family, bits, list(grids), runtime)
    if recovery and unit.block is not None:  # a head has no LoRA adapter
        quantized += [replace(choice, rank=ADAPTER_RANK) for choice in quantized if choice.bits == 2]
    may_stay = not (unit.experts and runtime and not runtime.format.may_stay)
    return [Choice(16), *quantized] if (16 in bits and may_stay) or not quantized else quantized


def _loadable(unit: Unit, family: Family, bits: list[int], preferred: list[Grid], runtime: Runtime) -> list[Choice]:
    """Return the choices that a runtime loads: per width the preferred grids, or all of its grids if it loads none."""
    loadable = []
    for width in bits:
        grids = [grid for grid in runtime.grids(unit.linears[0], family) if grid.bits == width]
        for grid in [grid for grid in grids if grid in preferred] or grids:
            stored = runtime.bits_per_weight(unit.linears[0], grid)
            loadable.append(Choice(grid.bits, grid.group_size, 0, grid.symmetric, stored))
    return loadable
