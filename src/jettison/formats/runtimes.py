"""What runtimes load (runtimes.yaml): which grids, and which matrices must share one. Needs shapes, no weights."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import yaml

from jettison.core.errors import UsageError, unknown
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import UniformGrid
from jettison.graph.anatomy import Anatomy, Family, Linear

USUAL_SIZES = (WHOLE_ROW, 16, 32, 64, 128, 256)  # what is offered where any group size loads
SORTS = {"head": "head", "embed": "embedding", "expert": "experts"}  # role -> sort of matrix; the others are "linears"
DENSE = "16 bits"


@dataclass(frozen=True)
class Kind:
    """Grids that load alike: any of these bits, group sizes (None: whatever divides), symmetries and values together.

    name: of the kernel or the type. bits_per_weight: as stored, where that is not what the grid itself says.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...] | None
    symmetric: tuple[bool, ...]
    values: tuple[str, ...] = ("int",)
    name: str = ""
    columns_multiple_of: int = 1
    rows_multiple_of: int = 1
    bits_per_weight: float | None = None


@dataclass(frozen=True)
class Part:
    """How one sort of matrix loads. No kinds: it stays in 16 bits. only, not_in: families, empty for no restriction."""

    kinds: tuple[Kind, ...]
    verified: bool
    only: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Support:
    """What a runtime loads of one checkpoint format. parts: for linears, head, embedding and experts; the other fields
    are those of runtimes.yaml."""

    name: str
    parts: dict[str, Part]
    share: str
    stacked: bool
    may_stay: bool
    fused: tuple[str, ...]
    stored_dense: tuple[str, ...]
    where: str
    note: str
    source: str

    @property
    def written(self) -> bool:
        return self.name in written_formats()


@dataclass(frozen=True)
class Runtime:
    """A row of runtimes.yaml. max_rank: of LoRA adapters; None where no limit is known."""

    name: str
    title: str
    formats: tuple[Support, ...]
    max_rank: int | None

    def __str__(self) -> str:
        return f"{self.name}, {self.format.name}"

    @cached_property
    def format(self) -> Support:
        """The one that a checkpoint for this runtime is in: the first that Jettison writes, else the first."""
        return next((format for format in self.formats if format.written), self.formats[0])

    def loading(self, format: str) -> "Runtime":
        """This runtime for checkpoints in that format alone. Raises UsageError if it loads none such."""
        if not (known := [each for each in self.formats if each.name == format]):
            raise unknown("format", format, [each.name for each in self.formats], f" for runtime {self.name}")
        return replace(self, formats=tuple(known))

    @property
    def no_writer(self) -> str:
        """Why nothing can be compressed for this runtime yet, though it can be planned for; '' if it can."""
        if self.format.written:
            return ""
        able = ", ".join(name for name, runtime in _runtimes().items() if runtime.format.written)
        return (
            f"{self.name} loads {self.format.name}, which Jettison does not write yet: "
            f"only a plan can be made for it. Checkpoints can be made for {able}"
        )

    def allows(self, linear: Linear, grid: Grid, family: Family | None = None) -> str:
        """'' if a matrix on this grid loads, else the reason in one line. What it is fused with is not looked at.

        family: of the model, for loaders that do not treat all alike; without it, it counts as one that loads.
        """
        reason = _reason(self.format, linear, grid, family)
        return f"{self}: {linear.name}: {reason}" if reason else ""

    def grids(self, linear: Linear, family: Family | None = None) -> list[Grid]:
        """The grids that load for a matrix, the least bits first: what a planner may choose from."""
        found = {
            UniformGrid(bits, size, symmetric)
            for kind in self.format.parts[_sort(linear)].kinds
            if "int" in kind.values
            for bits in kind.bits
            for size in kind.group_sizes or USUAL_SIZES
            for symmetric in kind.symmetric
        }
        legal = [grid for grid in found if not _reason(self.format, linear, grid, family)]
        return sorted(legal, key=lambda grid: (grid.bits, grid.group_size, grid.symmetric))

    def bits_per_weight(self, linear: Linear, grid: Grid) -> float:
        """What a weight takes in the format, scales and zero points counted, on a grid that loads."""
        kinds = self.format.parts[_sort(linear)].kinds
        fit = next((kind for kind in kinds if not _misfit((kind,), linear, grid)), None)
        return fit.bits_per_weight if fit and fit.bits_per_weight else grid.bits_per_weight(linear.columns)


def fitted(grid: Grid, linears: Iterable[Linear], runtime: Runtime | None = None) -> Grid:
    """The grid with the largest group size, not above its own, that divides the rows of all ``linears`` and that the
    runtime loads; where there is none, with one group per row. A group size is a wish: no recipe knows every shape.

    linears: what shares the grid. Where the runtime loads none, it is left out of account: ``illegal`` says the reason.
    """
    if grid.group_size == WHOLE_ROW:
        return grid
    kinds = {(linear.columns, linear.rows, linear.roles, linear.layout): linear for linear in linears}.values()
    below = sorted((size for size in USUAL_SIZES if 0 < size < grid.group_size), reverse=True)
    sizes = [s for s in (grid.group_size, *below) if not any(each.columns % s for each in kinds)] + [WHOLE_ROW]
    loads = lambda size: not any(runtime.allows(each, replace(grid, group_size=size)) for each in kinds)
    size = next((size for size in sizes if runtime is None or loads(size)), sizes[0])
    return replace(grid, group_size=size)


def fitted_grids(linears: Iterable[Linear], grid: Grid, runtime: Runtime | None = None) -> dict[Linear, Grid]:
    """``fitted``, for the linears of one step. What runtimes run as one matrix shares a grid, and so do all experts."""
    shared: dict[str, list[Linear]] = defaultdict(list)
    part = lambda linear: "experts" if "expert" in linear.roles else linear.fused
    for linear in (linears := list(linears)):
        shared[part(linear)].append(linear)
    found = {name: fitted(grid, each, runtime) for name, each in shared.items()}
    return {linear: found[part(linear)] for linear in linears}


def illegal(runtime: Runtime, anatomy: Anatomy, grids: Mapping[str, Grid], format: str | None = None) -> list[str]:
    """All reasons why a quantized model would not load, one line each, for however many matrices one holds.

    grids: linear name -> grid; what is absent stays in 16 bits. format: of the checkpoint, by default
    ``runtime.format``. Whether the format is written is not asked here: see ``Runtime.no_writer``.
    """
    runtime = runtime if format is None else runtime.loading(format)
    format, found = runtime.format, defaultdict(list)
    for linear in anatomy:
        if linear.name in grids and (reason := _reason(format, linear, grids[linear.name], anatomy.family)):
            found[reason].append(linear)
    lines = [f"{_count(linears)}: {reason}" for reason, linears in found.items()]
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
    """Why such a matrix loads on no grid."""
    sort = _sort(linear)
    part = format.parts[sort]
    if not part.kinds:
        return f"quantized {sort}; valid: {DENSE}"
    stacked = family and sort == "experts" and family.experts["stored"] == "stacked" and not format.stacked
    if stacked or (family and (family.name in part.not_in or (part.only and family.name not in part.only))):
        return f"quantized {sort} of {family.name}; valid: {DENSE}"
    return ""


def _misfit(kinds: Iterable[Kind], linear: Linear, grid: Grid) -> str:
    """Which property of a grid no kind has that has the ones before, and what would be valid; '' if a kind has all."""
    with_these = ""
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
        # Runtimes pad the rows of a head, the vocabulary.
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
    """What must share a grid and does not, and experts that are left behind."""
    groups: dict[str, list[Linear]] = defaultdict(list)
    for linear in anatomy:
        if key := _group(format, linear):
            groups[key].append(linear)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, linears in groups.items():
        given: dict[str, set[str]] = defaultdict(set)
        for linear in linears:
            role = next(role for role in linear.roles if role != "expert")
            given[role].add(str(grids.get(linear.name, DENSE)))
        if len(set().union(*given.values())) > 1:
            parts = ", ".join(f"{role} {' and '.join(sorted(each))}" for role, each in given.items())
            found[re.sub(r"\.\d+\.", ".*.", key), parts].append(key)
    lines = [
        f"{what} needs one grid; given: {parts}" + (f" ({len(keys)} times, first {keys[0]})" if keys[1:] else "")
        for (what, parts), keys in found.items()
    ]
    experts = [linear for linear in anatomy if "expert" in linear.roles]
    separate = bool(experts) and anatomy.family.experts["stored"] == "separate"
    if separate and not format.may_stay and grids and not any(linear.name in grids for linear in experts):
        lines.append(f"{_count(experts)}: experts in {DENSE} beside quantized matrices; valid: quantize all of them")
    return lines


def _group(format: Support, linear: Linear) -> str:
    """What a matrix shares its grid with, '' if nothing."""
    if "expert" not in linear.roles:
        return linear.fused if linear.fused.rpartition(".")[2] in format.fused else ""
    if "experts" not in format.fused:
        return ""
    return {"fused": linear.fused, "block": linear.fused.rpartition(".")[0], "model": "the whole of the experts"}[
        format.share
    ]


def _count(linears: list[Linear]) -> str:
    if len(linears) == 1:
        return linears[0].name
    roles = dict.fromkeys(linear.role for linear in linears)
    return f"{', '.join(roles)} ({len(linears)} matrices, first {linears[0].name})"


def runtime_names() -> list[str]:
    return sorted(_runtimes())


def find_runtime(name: str) -> Runtime:
    """Raises UsageError that lists the known ones."""
    if name not in _runtimes():
        raise unknown("runtime", name, runtime_names())
    return _runtimes()[name]


@cache
def _rows() -> dict[str, Any]:
    return yaml.safe_load((files("jettison.formats") / "runtimes.yaml").read_text(encoding="utf-8"))


def written_formats() -> tuple[str, ...]:
    """The formats that have a writer in this room, in the order of preference: those that Jettison itself loads."""
    return tuple(_rows()["jettison"]["formats"])


@cache
def _runtimes() -> dict[str, Runtime]:
    return {
        name: Runtime(
            name=name,
            title=row["title"],
            formats=tuple(_format(each, fields) for each, fields in row["formats"].items()),
            max_rank=row.get("max_rank"),
        )
        for name, row in _rows().items()
    }


def _format(name: str, row: dict[str, Any]) -> Support:
    linears, experts = Part(_kinds(row["grids"]), row["verified"]), row["experts"]
    return Support(
        name=name,
        parts={"linears": linears} | {sort: _part(row[sort], linears) for sort in SORTS.values()},
        share=experts.get("share", "fused"),
        stacked=experts.get("stacked", False),
        may_stay=experts.get("may_stay", True),
        fused=tuple(row["fused"]),
        stored_dense=tuple(row.get("stored_dense", ())),
        where=row["where"],
        note=row.get("note", ""),
        source=row["source"],
    )


def _kinds(rows: list[dict[str, Any]]) -> tuple[Kind, ...]:
    read = lambda value: None if value == "any" else tuple(value) if isinstance(value, list) else value
    return tuple(Kind(**{field: read(value) for field, value in row.items()}) for row in rows)


def _part(value: bool | dict[str, Any], linears: Part) -> Part:
    """From true (as linears), false, or a mapping."""
    given = value if isinstance(value, dict) else {} if value else {"grids": []}
    return Part(
        kinds=_kinds(given["grids"]) if "grids" in given else linears.kinds,
        verified=given.get("verified", linears.verified),
        only=tuple(given.get("only", ())),
        not_in=tuple(given.get("not_in", ())),
    )
