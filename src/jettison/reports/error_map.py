"""The map of errors in the model, blocks × roles, from the errors that compression recorded for every linear."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jettison.core.errors import JettisonError
from jettison.graph.folder import ModelFolder
from jettison.reports.run import Run

WHOLE = "block output"  # the row with the error of a whole block's output


@dataclass(frozen=True)
class ErrorMap:
    """Errors and grids by role (rows) and block (columns).

    roles: the names of the rows.
    errors: (roles, blocks), relative squared error, the mean where a block has several linears of a role (experts);
        None where nothing was quantized.
    grids: (roles, blocks), grids as text such as "int2 g64 sym"; None where nothing was quantized.
    outside: name, grid and error of the linears outside the blocks (the head).
    """

    roles: list[str]
    errors: list[list[float | None]]
    grids: list[list[str | None]]
    outside: list[tuple[str, str, float]]

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self.errors[0])


def read_error_map(run: Run) -> ErrorMap | None:
    """Read the errors of a run from its manifest. Returns None if no linear of any block was quantized."""
    *blocks, rest = run.manifest["blocks"] or [{"linears": {}}]
    role_of = _roles(run)
    cells: list[dict[str, list[dict[str, Any]]]] = []
    for block in blocks:
        cells.append({})
        for name, linear in block["linears"].items():
            cells[-1].setdefault(role_of.get(name) or name.rpartition(".")[2], []).append(linear)
    present = dict.fromkeys(role for cell in cells for role in cell)
    # In the order of the computation if the folder can be opened as a model, else in the order of compression.
    roles = [role for role in dict.fromkeys([*role_of.values(), *present]) if role in present]
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
    """Return linear -> role. Empty if the folder cannot be opened as a model: a report needs only its jettison.json."""
    try:
        return {linear.name: linear.role for linear in ModelFolder(run.folder).anatomy}
    except JettisonError:
        return {}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def _made_of(linear: dict) -> str:
    """Return the grid and the sparsity pattern of a linear, as far as it has them."""
    return " ".join(linear[name] for name in ("grid", "pattern") if name in linear)


def _join(grids: Iterable[str]) -> str | None:
    return " / ".join(dict.fromkeys(grids)) or None
