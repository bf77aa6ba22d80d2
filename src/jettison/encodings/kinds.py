"""The kinds of grids: how a recipe asks for one, and how a file describes one.

A new kind is a file with a subclass of ``Grid``, and its class in ``KINDS``.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from jettison.core.errors import UsageError, shown, unknown
from jettison.encodings.grid import Grid
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid

KINDS: dict[str, type[Grid]] = {
    "uniform": UniformGrid,
    "table": ValueTable,
    "affine": OffsetGrid,
}  # by the name that files give them


def make_grid(options: Mapping[str, Any]) -> Grid:
    """Make the grid that the options of a quantize step ask for.

    options: ``values`` (``int`` by default), and fields of the kind of grid that has them.
    Raises UsageError for unknown values, and for options that such a grid lacks or has with another value.
    """
    kinds = {name: kind for kind in KINDS.values() for name in kind.names()}
    values = options.get("values", "int")
    if values not in kinds:
        raise unknown("values", values, kinds)
    kind = kinds[values]
    own = {field.name for field in fields(kind)}
    try:
        grid = kind(**{name: value for name, value in options.items() if name in own})
    except TypeError:
        needed = [name for name in ("bits", "group_size") if name in own and name not in options]
        raise UsageError(f"quantize option values = {values!r} needs {needed[0]!r} too") from None
    for name, value in options.items():
        if value != (fixed := getattr(grid, name)):
            raise UsageError(f"quantize option {name} = {shown(value)}: a grid of {values} has {str(fixed).lower()}")
    return grid


def describe(grid: Grid) -> dict[str, Any]:
    """Return a description of a grid for config.json: its kind as ``encoding``, and its fields."""
    return {"encoding": next(name for name, kind in KINDS.items() if type(grid) is kind)} | asdict(grid)


def read_description(row: Any) -> Grid:
    """Make the grid of a description. Raises UsageError that says what is wrong with the description."""
    if not isinstance(row, dict) or row.get("encoding") not in KINDS:
        raise UsageError(f"{row!r:.80}; an object with encoding {' or '.join(KINDS)} is needed")
    kind, options = KINDS[row["encoding"]], {name: value for name, value in row.items() if name != "encoding"}
    types = {field.name: field.type for field in fields(kind)}
    for name, value in options.items():
        if name not in types:
            raise unknown("field", name, types)
        if type(value) is not types[name]:  # isinstance would accept true as an int
            raise UsageError(f"{name} = {value!r:.60}; {types[name].__name__} is needed")
    if missing := [name for name in types if name not in options]:
        raise UsageError(f"{missing[0]} is missing")
    return kind(**options)
