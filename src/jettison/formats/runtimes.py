"""Rules of what runtimes load (runtimes.yaml): which grids, and which matrices must share one.

Only shapes are needed, not weights.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from jettison.core.errors import UsageError, unknown
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats.support import SORTS, Kind, Support, read_support, runtime_rows
from jettison.graph.anatomy import Anatomy, Family, Linear

USUAL_SIZES = (WHOLE_ROW, 16, 32, 64, 128, 256)  # the group sizes that are tried where any size loads
DENSE = "16 bits"


@dataclass(frozen=True)
class Runtime:
    """A row of runtimes.yaml. max_rank: the highest rank of a LoRA adapter; None where no limit is known."""

    name: str
    title: str
    formats: tuple[Support, ...]
    max_rank: int | None

    def __str__(self) -> str:
        return f"{self.name}, {self.format.name}"

    @cached_property
    def format(self) -> Support:
        """The format of checkpoints for this runtime: the first that Jettison writes, else the first."""
        return next((format for format in self.formats if format.written), self.formats[0])

    def loading(self, format: str) -> "Runtime":
        """Return this runtime restricted to one format. Raises UsageError if it does not load that format."""
        if not (known := [support for support in self.formats if support.name == format]):
            raise unknown("format", format, [support.name for support in self.formats], f" for runtime {self.name}")
        return replace(self, formats=tuple(known))

    @property
    def no_writer(self) -> str:
        """Why Jettison can plan for this runtime but not write a checkpoint for it; '' if it can write one."""
        if self.format.written:
            return ""
        able = ", ".join(name for name, runtime in _runtimes().items() if runtime.format.written)
        return (
            f"{self.name} loads {self.format.name}, which compress does not write: only a plan "
            f"can be made for it, and jettison export --to {self.format.name}. Checkpoints can be made for {able}"
        )

    def allows(self, linear: Linear, grid: Grid, family: Family | None = None) -> str:
        """Return '' if a matrix on this grid loads, else the reason in one line. Fused matrices are not checked.

        family: of the model, since some loaders restrict families; None counts as a family that loads.
        """
        reason = _reason(self.format, linear, grid, family)
        return f"{self}: {linear.name}: {reason}" if reason else ""

    def grids(self, linear: Linear, family: Family | None = None) -> list[Grid]:
        """List the integer grids that load for a matrix, fewest bits first, for a planner to choose from."""
        candidates = {
            UniformGrid(bits, size, symmetric)
            for kind in self.format.parts[_sort(linear)].kinds
            if kind.values and "int" in kind.values
            for bits in kind.bits
            for size in kind.group_sizes or USUAL_SIZES
            for symmetric in kind.symmetric
        }
        legal = [grid for grid in candidates if not _reason(self.format, linear, grid, family)]
        return sorted(legal, key=lambda grid: (grid.bits, grid.group_size, grid.symmetric))

    def bits_per_weight(self, linear: Linear, grid: Grid) -> float:
        """Return the bits per weight in the format, with scales and zero points, on a grid that loads."""
        kinds = self.format.parts[_sort(linear)].kinds
        fit = next((kind for kind in kinds if not _misfit((kind,), linear, grid)), None)
        return fit.bits_per_weight if fit and fit.bits_per_weight else grid.bits_per_weight(linear.columns)


def fitted(grid: Grid, linears: Iterable[Linear], runtime: Runtime | None = None) -> Grid:
    """Reduce the group size of a grid until it divides the rows of all ``linears`` and loads in the runtime.

    If no size fits, the grid gets one group per row. No recipe knows every shape, so its group size is a maximum.

    linears: the linears that share the grid.
    runtime: ignored if it loads no size; ``illegal`` then says the reason.
    """
    if grid.group_size == WHOLE_ROW:
        return grid
    # One linear of every shape and role is enough.
    kinds = {(linear.columns, linear.rows, linear.roles, linear.layout): linear for linear in linears}.values()
    below = sorted((size for size in USUAL_SIZES if 0 < size < grid.group_size), reverse=True)
    sizes = [s for s in (grid.group_size, *below) if not any(linear.columns % s for linear in kinds)] + [WHOLE_ROW]
    loads = lambda size: not any(runtime.allows(linear, replace(grid, group_size=size)) for linear in kinds)
    size = next((size for size in sizes if runtime is None or loads(size)), sizes[0])
    return replace(grid, group_size=size)


def fitted_grids(linears: Iterable[Linear], grid: Grid, runtime: Runtime | None = None) -> dict[Linear, Grid]:
    """Call ``fitted`` for the linears of one step. Matrices that runtimes fuse share a grid, and so do all experts."""
    shared: dict[str, list[Linear]] = defaultdict(list)
    part = lambda linear: "experts" if "expert" in linear.roles else linear.fused
    for linear in (linears := list(linears)):
        shared[part(linear)].append(linear)
    grids = {name: fitted(grid, members, runtime) for name, members in shared.items()}
    return {linear: grids[part(linear)] for linear in linears}


def illegal(runtime: Runtime, anatomy: Anatomy, grids: Mapping[str, Grid], format: str | None = None) -> list[str]:
    """List all reasons why a quantized model would not load, one line for all matrices with the same reason.

    grids: linear name -> grid; linears without an entry stay in 16 bits.
    format: of the checkpoint, by default ``runtime.format``. ``Runtime.no_writer`` says whether Jettison writes it.
    """
    runtime = runtime if format is None else runtime.loading(format)
    format, by_reason = runtime.format, defaultdict(list)
    for linear in anatomy:
        if linear.name in grids and (reason := _reason(format, linear, grids[linear.name], anatomy.family)):
            by_reason[reason].append(linear)
    lines = [f"{_count(linears)}: {reason}" for reason, linears in by_reason.items()]
    return [f"{runtime}: {line}" for line in lines + _mixtures(format, anatomy, grids)]


def _sort(linear: Linear) -> str:
    return next((SORTS[role] for role in linear.roles if role in SORTS), "linears")


def _reason(format: Support, linear: Linear, grid: Grid, family: Family | None) -> str:
    if linear.layout in format.stored_dense:
        return ""
    part = format.parts[_sort(linear)]
    reason = _unable(format, linear, family) or _misfit(part.kinds, linear, grid)
    return reason if part.verified or not reason else f"{reason} (not verified)"


def _unable(format: Support, linear: Linear, family: Family | None) -> str:
    """Why such a matrix does not load on any grid; '' if it may load."""
    part = format.parts[sort := _sort(linear)]
    if not part.kinds:
        return f"quantized {sort}; valid: {DENSE}"
    stacked = family and sort == "experts" and family.experts["stored"] == "stacked" and not format.stacked
    if stacked or (family and (family.name in part.not_in or (part.only and family.name not in part.only))):
        return f"quantized {sort} of {family.name}; valid: {DENSE}"
    return ""


def _misfit(kinds: Iterable[Kind], linear: Linear, grid: Grid) -> str:
    """The first property of a grid that no remaining kind has, and the valid values; '' if one kind has all of them.

    Each property leaves only the kinds that have it for the next one.
    """
    with_these = ""  # the properties so far, for the message
    for name in ("values", "bits", "symmetric", "group_size"):
        value, field = getattr(grid, name), "group_sizes" if name == "group_size" else name
        fit = [kind for kind in kinds if getattr(kind, field) is None or value in getattr(kind, field)]
        if not fit:
            valid = sorted({choice for kind in kinds for choice in getattr(kind, field)})
            return f"{_shown(name, value)}{with_these}; valid: {', '.join(str(choice).lower() for choice in valid)}"
        if name != "values" or value != "int":
            with_these += f"{',' if with_these else ' with'} {_shown(name, value)}"
        kinds = fit
    for name in ("columns", "rows"):
        # Runtimes pad the rows of a head, which are the vocabulary, so any number of them loads.
        value = 0 if name == "rows" and "head" in linear.roles else getattr(linear, name)
        fit = [kind for kind in kinds if value % getattr(kind, f"{name}_multiple_of") == 0]
        if not fit:
            valid = min(getattr(kind, f"{name}_multiple_of") for kind in kinds)
            return f"{value} {name}{with_these}; valid: multiples of {valid}"
        kinds = fit
    try:
        grid.groups(linear.columns)
    except UsageError as error:
        return str(error)
    return ""


def _shown(name: str, value: int | bool | str) -> str:
    return f"{name} {str(value).lower()}"  # true and false, as recipes write them


def _mixtures(format: Support, anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """Matrices that must share a grid and do not, and experts in 16 bits that must be quantized; one line each."""
    groups: dict[str, list[Linear]] = defaultdict(list)
    for linear in anatomy:
        if key := _group(format, linear):
            groups[key].append(linear)
    mixed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, linears in groups.items():
        by_role: dict[str, set[str]] = defaultdict(set)
        for linear in linears:
            role = next(role for role in linear.roles if role != "expert")
            by_role[role].add(str(grids.get(linear.name, DENSE)))
        if len(set().union(*by_role.values())) > 1:
            parts = ", ".join(f"{role} {' and '.join(sorted(names))}" for role, names in by_role.items())
            mixed[re.sub(r"\.\d+\.", ".*.", key), parts].append(key)
    lines = [
        f"{what} needs one grid; given: {parts}" + (f" ({len(keys)} times, first {keys[0]})" if keys[1:] else "")
        for (what, parts), keys in mixed.items()
    ]
    packed = {
        grids[linear.name] for linear in anatomy if linear.name in grids and linear.layout not in format.stored_dense
    }
    several = sorted({f"{grid.bits} bits in groups of {grid.group_size}" for grid in packed})
    if format.one_grid and len(several) > 1:
        lines.append(f"the whole model needs one number of bits and one group size; given: {', '.join(several)}")
    experts = [linear for linear in anatomy if "expert" in linear.roles]
    separate = bool(experts) and anatomy.family.experts["stored"] == "separate"
    if separate and not format.may_stay and grids and not any(linear.name in grids for linear in experts):
        lines.append(f"{_count(experts)}: experts in {DENSE} beside quantized matrices; valid: quantize all of them")
    return lines


def _group(format: Support, linear: Linear) -> str:
    """The name of the group that shares a grid with a matrix, '' if there is none."""
    if "expert" not in linear.roles:
        return linear.fused if linear.fused.rpartition(".")[2] in format.fused else ""
    if "experts" not in format.fused:
        return ""
    keys = {"fused": linear.fused, "block": linear.fused.rpartition(".")[0], "model": "the whole of the experts"}
    return keys[format.share]


def _count(linears: list[Linear]) -> str:
    if len(linears) == 1:
        return linears[0].name
    roles = dict.fromkeys(linear.role for linear in linears)
    return f"{', '.join(roles)} ({len(linears)} matrices, first {linears[0].name})"


def runtime_names() -> list[str]:
    """Return the names of all runtimes, sorted."""
    return sorted(_runtimes())


def find_runtime(name: str) -> Runtime:
    """Return the runtime of this name. Raises UsageError, which lists the known ones."""
    if name not in _runtimes():
        raise unknown("runtime", name, runtime_names())
    return _runtimes()[name]


@cache
def _runtimes() -> dict[str, Runtime]:
    return {
        name: Runtime(
            name=name,
            title=row["title"],
            formats=tuple(read_support(format, fields) for format, fields in row["formats"].items()),
            max_rank=row.get("max_rank"),
        )
        for name, row in runtime_rows().items()
    }
