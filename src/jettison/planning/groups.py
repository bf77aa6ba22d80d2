"""What a plan decides on: the matrices that runtimes run as one, and what each may become."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats.runtimes import Runtime, fitted
from jettison.graph.anatomy import Anatomy, Family, Linear

BITS = (2, 3, 4, 8, 16)
GROUP_SIZES = (32, 64, 128)
ADAPTER_RANK = 8  # of what recovery leaves beside a 2-bit matrix


@dataclass(frozen=True)
class Unit:
    """Linears that share their bits: q, k, v; gate and up; the experts of a block.

    role: ``qkv``, ``gate_up``, ``expert down`` and so on. block: None for head and embedding.
    """

    name: str
    role: str
    block: int | None
    linears: tuple[Linear, ...]

    def __hash__(self) -> int:  # of hundreds of experts it would take long
        return hash(self.name)

    @cached_property
    def kinds(self) -> tuple[Linear, ...]:
        """One linear of each combination of roles and block, by which steps of a recipe find them."""
        return tuple({(linear.roles, linear.block): linear for linear in self.linears}.values())

    @cached_property
    def weights(self) -> int:
        return sum(linear.weights for linear in self.linears)

    @cached_property
    def columns(self) -> int:
        return self.linears[0].columns

    @cached_property
    def experts(self) -> int:
        """How many experts' matrices it holds; 0 for a unit that every token goes through."""
        return len({linear.inputs for linear in self.linears}) if "expert" in self.linears[0].roles else 0

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The roles by which a recipe's step finds it."""
        return tuple(dict.fromkeys(role for linear in self.linears for role in linear.roles if role != "expert"))


@dataclass(frozen=True, order=True)
class Choice:
    """What becomes of a unit. bits 16: it stays as it is. rank: of the LoRA adapter that recovery leaves, 0 for none.
    stored: bits per weight in a format that stores a grid in its own way, 0 for codes, scales and zero points."""

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
        return None if self.bits == 16 else UniformGrid(self.bits, self.group_size, self.symmetric)


def find_units(anatomy: Anatomy) -> list[Unit]:
    """All linears of a model, the embedding included, by what runtimes run as one matrix."""
    return list(_units(anatomy))


@lru_cache(8)  # a plan asks for the units of its model dozens of times
def _units(anatomy: Anatomy) -> tuple[Unit, ...]:
    parts: dict[str, list[Linear]] = {}
    for linear in anatomy:
        parts.setdefault(linear.fused, []).append(linear)
    found = []
    for name, linears in parts.items():
        group, roles = name.rpartition(".")[2], [role for role in linears[0].roles if role != "expert"]
        role = group if group in anatomy.family.fused else "_".join(roles)
        role = f"expert {role}" if "expert" in linears[0].roles else role
        found.append(Unit(name, role, linears[0].block, tuple(linears)))
    return tuple(found)


def tie(units: list[Unit], runtime: Runtime | None) -> list[tuple[Unit, ...]]:
    """Units that must share their choice: those that a recipe cannot tell apart, being of one role in one block (of a
    model that is read generically); and experts where a runtime wants one grid for a block's, or for all of them."""
    share = "fused" if runtime is None else runtime.format.share
    groups: dict[tuple, list[Unit]] = {}
    for unit in units:
        key = (unit.role, unit.block)
        if share != "fused" and unit.experts:
            key = ("experts", unit.block if share == "block" else None)
        groups.setdefault(key, []).append(unit)
    return list(map(tuple, groups.values()))


def choices(
    unit: Unit,
    family: Family,
    bits: Iterable[int] = BITS,
    group_sizes: Iterable[int] = GROUP_SIZES,
    recovery: bool = False,
    runtime: Runtime | None = None,
) -> list[Choice]:
    """What a unit may become; 16 bits where nothing else is possible. The embedding, which is looked up and not
    multiplied, stays as it is.

    group_sizes: wishes, see ``runtimes.fitted``. recovery: 2 bits with a LoRA adapter too. runtime: only grids that it
    loads; of widths that it loads in none of these sizes, those it does load.
    """
    bits, sizes = list(bits), list(group_sizes)
    grids = {
        fitted(UniformGrid(width, size), unit.linears, runtime): None for width in bits if width != 16 for size in sizes
    }
    found = [Choice(grid.bits, grid.group_size) for grid in grids]
    if unit.role == "embed":
        found = []
    elif runtime is not None:
        found = _legal(unit, family, bits, list(grids), runtime)
    if recovery and unit.block is not None:  # a head has no LoRA adapter
        found += [replace(choice, rank=ADAPTER_RANK) for choice in found if choice.bits == 2]
    stays = not (unit.experts and runtime and not runtime.format.may_stay)
    return [Choice(16), *found] if (16 in bits and stays) or not found else found


def _legal(unit: Unit, family: Family, bits: list[int], wanted: list[Grid], runtime: Runtime) -> list[Choice]:
    found = []
    for width in bits:
        grids = [grid for grid in runtime.grids(unit.linears[0], family) if grid.bits == width]
        for grid in [grid for grid in grids if grid in wanted] or grids:
            stored = runtime.bits_per_weight(unit.linears[0], grid)
            found.append(Choice(grid.bits, grid.group_size, 0, grid.symmetric, stored))
    return found
