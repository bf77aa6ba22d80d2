"""Where in the model the error is: blocks × roles, from what compression noted of every linear."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jettison.core.errors import JettisonError
from jettison.graph.folder import ModelFolder
from jettison.reports.run import Run

WHOLE = "block output"


@dataclass(frozen=True)
class ErrorMap:
    """roles: the rows. errors, grids: one list per row, one entry per block; None where a block has nothing quantized.

    errors: relative squared error, the mean where a block has several linears of a role (experts).
    grids: as text, "int2 g64 sym". outside: name, grid and error of what lies outside the blocks (the head).
    """

    roles: list[str]
    errors: list[list[float | None]]
    grids: list[list[str | None]]
    outside: list[tuple[str, str, float]]

    @property
    def blocks(self) -> int:
        return len(self.errors[0])


def read_error_map(run: Run) -> ErrorMap | None:
    """None if no linear of any block was quantized."""
    *blocks, rest = run.manifest["blocks"] or [{"linears": {}}]
    role_of = _roles(run)
    cells: list[dict[str, list[dict[str, Any]]]] = []
    for block in blocks:
        cells.append({})
        for name, linear in block["linears"].items():
            cells[-1].setdefault(role_of.get(name) or name.rpartition(".")[2], []).append(linear)
    found = dict.fromkeys(role for cell in cells for role in cell)
    # In the order of the computation where the model is at hand, else as compression went through them.
    roles = [role for role in dict.fromkeys([*role_of.values(), *found]) if role in found]
    if not roles:
        return None
    errors = [[_mean(linear["error"] for linear in cell.get(role, ())) for cell in cells] for role in roles]
    grids = [[_join(_made_of(linear) for linear in cell.get(role, ())) for cell in cells] for role in roles]
    outputs = [block.get("error") for block in blocks]
    if any(error is not None for error in outputs):
        roles, errors, grids = [*roles, WHOLE], [*errors, outputs], [*grids, [None] * len(blocks)]
    outside = [(name, _made_of(linear), linear["error"]) for name, linear in rest["linears"].items()]
    return ErrorMap(roles, errors, grids, outside)


def _roles(run: Run) -> dict[str, str]:
    """Linear -> role. Empty if the folder cannot be opened as a model: a report needs only its jettison.json."""
    try:
        return {linear.name: linear.role for linear in ModelFolder(run.folder).anatomy}
    except JettisonError:
        return {}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _made_of(linear: dict) -> str:
    """Grid and pattern, as far as there are such."""
    return " ".join(linear[name] for name in ("grid", "pattern") if name in linear)


def _join(grids: Iterable[str]) -> str | None:
    return " / ".join(dict.fromkeys(grids)) or None
