"""What one inference of a model takes on one unit: from the official table, or from anything that can say so."""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from numbers import Real
from typing import Any

from jettison.core.errors import UsageError, shown, unknown
from jettison.xr.definitions import DATA, Accelerator, Unit

CYCLES_PER_MS = 1e6  # 1 GHz
MOST = 1e12  # ms or mJ of an inference


@dataclass(frozen=True)
class Cost:
    """latency_ms and energy_mj of one inference. layers: the share of the latency that is over where each layer
    ends, the last one 1.0: there it can be preempted. samples: latencies that were measured, which a simulated run
    draws from; none: every inference takes ``latency_ms``."""

    latency_ms: float
    energy_mj: float
    layers: tuple[float, ...] = (1.0,)
    samples: tuple[float, ...] = ()

    def __post_init__(self):
        for figure in ("latency_ms", "energy_mj"):
            value = getattr(self, figure)
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= MOST:
                raise UsageError(f"{figure} = {shown(value)}: a number that is not negative is needed")

    def scaled(self, latency: float = 1.0, energy: float = 1.0) -> "Cost":
        samples = tuple(latency * each for each in self.samples)
        return Cost(self.latency_ms * latency, self.energy_mj * energy, self.layers, samples)


@dataclass(frozen=True)
class Costs:
    """units: their names. rows: for each unit, model -> Cost. A model may be missing on a unit: it cannot run there.
    reaction_ms: from an event to the dispatch that answers it; a dispatcher that takes its time sees what comes
    meanwhile."""

    units: tuple[str, ...]
    rows: tuple[Mapping[str, Cost], ...]
    reaction_ms: float = 0.0

    def __post_init__(self):
        if not self.units or len(self.units) != len(self.rows):
            raise UsageError(f"costs of {len(self.rows)} units, {len(self.units)} named; one or more of each is needed")

    def check(self, models: Iterable[str]) -> None:
        """Raises UsageError for a model that no unit has a cost of."""
        known = {name for row in self.rows for name in row}
        for model in models:
            if model not in known:
                raise UsageError(f"no cost of model {model!r} on any of {', '.join(self.units)}; known: "
                                 f"{', '.join(sorted(known)) or 'none'}")  # fmt: skip

    def changed(self, model: str, cost: Cost) -> "Costs":
        """With another cost of one model, on every unit that runs it."""
        rows = tuple({**row, model: cost} if model in row else row for row in self.rows)
        return replace(self, rows=rows)

    def to_dict(self) -> dict[str, Any]:
        """As a file of costs has it: unit -> model -> latency_ms, energy_mj. Units of one name are numbered."""
        rows = zip(self.units, self.rows, strict=True)
        return {
            f"{place}: {unit}": {
                model: {"latency_ms": cost.latency_ms, "energy_mj": cost.energy_mj} for model, cost in row.items()
            }
            for place, (unit, row) in enumerate(rows)
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Costs":
        """Of a mapping unit -> model -> {latency_ms, energy_mj}. Raises UsageError naming what is wrong."""
        if not isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in data.values()):
            raise UsageError("costs are a mapping unit -> model -> {latency_ms: ..., energy_mj: ...}")
        rows = []
        for unit, row in data.items():
            found: dict[str, Cost] = {}
            for model, cost in row.items():
                if not isinstance(cost, Mapping) or set(cost) != {"latency_ms", "energy_mj"}:
                    raise UsageError(
                        f"cost of {model!r} on {unit!r}: latency_ms and energy_mj are needed, not {shown(cost)}"
                    )
                try:
                    found[str(model)] = Cost(**cost)
                except UsageError as error:
                    raise UsageError(f"cost of {model!r} on {unit!r}: {error}") from error
            rows.append(found)
        return cls(tuple(re.sub(r"^\d+: ", "", str(unit)) for unit in data), tuple(rows))


@cache
def _table() -> dict[Unit, dict[str, Cost]]:
    found: dict[Unit, dict[str, Cost]] = {}
    with (DATA / "unit_costs.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            unit = Unit(row["dataflow"], int(row["pes"]), int(row["noc_bw"]))
            cost = Cost(int(row["cycles"]) / CYCLES_PER_MS, float(row["energy_mj"]), layer_ends(row["model"]))
            found.setdefault(unit, {})[row["model"]] = cost
    return found


def table_costs(accelerator: Accelerator) -> Costs:
    """Of the official program, whose cost model is MAESTRO: cycles at 1 GHz, energy by MACs and reads of L1 and L2.

    Raises UsageError for a unit that is not in the table.
    """
    for unit in accelerator.units:
        if unit not in _table():
            raise unknown("unit", str(unit), map(str, _table()), f" of accelerator {accelerator}")
    return Costs(tuple(map(str, accelerator.units)), tuple(_table()[unit] for unit in accelerator.units))


@dataclass(frozen=True)
class Layer:
    """A convolution of the official tables: K out of C channels, a kernel of R by S, over an input of Y by X."""

    K: int
    C: int
    R: int
    S: int
    Y: int
    X: int

    @property
    def outputs(self) -> int:
        """Positions: the official program reads no stride and no padding. A kernel larger than its input has none."""
        return max(0, self.Y - self.R + 1) * max(0, self.X - self.S + 1)

    @property
    def macs(self) -> int:
        return self.K * self.C * self.R * self.S * self.outputs


@cache
def layer_table(model: str) -> tuple[Layer, ...]:
    """The frozen layers of ``xrbench-v0.1``. Every one is a dense convolution there, also where the real network has a
    depthwise one. Raises UsageError for a model that has no table."""
    tables = _layer_tables()
    if model not in tables:
        raise unknown("model", model, tables, ", which needs a table of layers")
    return tuple(tables[model])


@cache
def _layer_tables() -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    with (DATA / "layers.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            model = row.pop("model")
            found.setdefault(model, []).append(Layer(**{name: int(value) for name, value in row.items()}))
    return found


@cache
def layer_ends(model: str) -> tuple[float, ...]:
    """Where the layers end, as shares of the whole, by their MACs: the official table says what a model takes, not a
    layer."""
    return ends([layer.macs for layer in layer_table(model)])


def ends(parts: Iterable[float]) -> tuple[float, ...]:
    """Running sums as shares of the total; the last is 1.0."""
    sums = list(accumulate(parts))
    total = sums[-1] if sums else 0.0
    if not total:
        return (1.0,)
    return (*dict.fromkeys(share for each in sums if 0 < (share := each / total) < 1), 1.0)
