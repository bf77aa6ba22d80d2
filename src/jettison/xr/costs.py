"""Costs: latency and energy of one inference of a model on a unit.

They come from the official table of XRBench (``table_costs``), or as a mapping from any other source.
"""

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
LARGEST = 1e12  # ms or mJ of one inference; also rejects infinity


@dataclass(frozen=True)
class Cost:
    """The cost of one inference of a model on a unit.

    latency_ms: milliseconds.
    energy_mj: millijoules.
    layers: for every layer, the share of the latency that has passed when the layer ends; the last is 1.0. An
        inference can be preempted at these points.
    samples: measured latencies in ms; a simulated run draws from them. If empty, every inference takes ``latency_ms``.
    """

    latency_ms: float
    energy_mj: float
    layers: tuple[float, ...] = (1.0,)
    samples: tuple[float, ...] = ()

    def __post_init__(self):
        for figure in ("latency_ms", "energy_mj"):
            value = getattr(self, figure)
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= LARGEST:
                raise UsageError(f"{figure} = {shown(value)}: a number that is not negative is needed")

    def scaled(self, latency: float = 1.0, energy: float = 1.0) -> "Cost":
        """Return a copy with latencies multiplied by ``latency`` and the energy by ``energy``."""
        samples = tuple(latency * sample for sample in self.samples)
        return Cost(self.latency_ms * latency, self.energy_mj * energy, self.layers, samples)


@dataclass(frozen=True)
class Costs:
    """The costs of all models on all units.

    units: the names of the units.
    rows: one mapping per unit, model -> Cost. A model that is missing in a row cannot run on that unit.
    reaction_ms: time from an event to the dispatch that answers it. Above 0, a dispatch also sees the frames that
        arrived during that time.
    """

    units: tuple[str, ...]
    rows: tuple[Mapping[str, Cost], ...]
    reaction_ms: float = 0.0

    def __post_init__(self):
        if not self.units or len(self.units) != len(self.rows):
            raise UsageError(
                f"costs have {len(self.rows)} rows and {len(self.units)} names of units; one row per unit is needed, "
                "and at least one unit"
            )

    def check(self, models: Iterable[str]) -> None:
        """Raise UsageError for a model that has no cost on any unit."""
        known = {name for row in self.rows for name in row}
        for model in models:
            if model not in known:
                raise UsageError(f"no cost of model {model!r} on any of {', '.join(self.units)}; known: "
                                 f"{', '.join(sorted(known)) or 'none'}")  # fmt: skip

    def changed(self, model: str, cost: Cost) -> "Costs":
        """Return a copy in which ``model`` has ``cost`` on every unit that can run it."""
        rows = tuple({**row, model: cost} if model in row else row for row in self.rows)
        return replace(self, rows=rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a cost file: unit -> model -> {latency_ms, energy_mj}.

        Every unit's name is preceded by its index, because several units may have the same name.
        """
        rows = zip(self.units, self.rows, strict=True)
        return {
            f"{index}: {unit}": {
                model: {"latency_ms": cost.latency_ms, "energy_mj": cost.energy_mj} for model, cost in row.items()
            }
            for index, (unit, row) in enumerate(rows)
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Costs":
        """Build costs from a mapping unit -> model -> {latency_ms, energy_mj}.

        An index before a unit's name (``0: cpu``), as ``to_dict`` writes it, is removed. Raises UsageError that names
        what is wrong.
        """
        if not isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in data.values()):
            raise UsageError("costs are a mapping unit -> model -> {latency_ms: ..., energy_mj: ...}")
        rows = []
        for unit, row in data.items():
            costs: dict[str, Cost] = {}  # of this unit
            for model, cost in row.items():
                if not isinstance(cost, Mapping) or set(cost) != {"latency_ms", "energy_mj"}:
                    raise UsageError(
                        f"cost of {model!r} on {unit!r}: latency_ms and energy_mj are needed, not {shown(cost)}"
                    )
                try:
                    costs[str(model)] = Cost(**cost)
                except UsageError as error:
                    raise UsageError(f"cost of {model!r} on {unit!r}: {error}") from error
            rows.append(costs)
        return cls(tuple(re.sub(r"^\d+: ", "", str(unit)) for unit in data), tuple(rows))


@cache
def _cost_table() -> dict[Unit, dict[str, Cost]]:
    table: dict[Unit, dict[str, Cost]] = {}
    with (DATA / "unit_costs.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            unit = Unit(row["dataflow"], int(row["pes"]), int(row["noc_bw"]))
            cost = Cost(int(row["cycles"]) / CYCLES_PER_MS, float(row["energy_mj"]), layer_ends(row["model"]))
            table.setdefault(unit, {})[row["model"]] = cost
    return table


def table_costs(accelerator: Accelerator) -> Costs:
    """Return the costs that the official program uses for an accelerator.

    They are results of the cost model MAESTRO: cycles at 1 GHz, and energy from MACs and reads of L1 and L2.
    Raises UsageError for a unit that is not in the table.
    """
    for unit in accelerator.units:
        if unit not in _cost_table():
            raise unknown("unit", str(unit), map(str, _cost_table()), f" of accelerator {accelerator}")
    return Costs(tuple(map(str, accelerator.units)), tuple(_cost_table()[unit] for unit in accelerator.units))


@dataclass(frozen=True)
class Layer:
    """A convolution of the official tables.

    K: output channels. C: input channels. R, S: height and width of the kernel. Y, X: height and width of the input.
    """

    K: int
    C: int
    R: int
    S: int
    Y: int
    X: int

    @property
    def outputs(self) -> int:
        """The number of output positions, 0 for a kernel larger than its input.

        Stride 1 and no padding are assumed, because the official program reads neither.
        """
        return max(0, self.Y - self.R + 1) * max(0, self.X - self.S + 1)

    @property
    def macs(self) -> int:
        """Multiply-adds of the layer."""
        return self.K * self.C * self.R * self.S * self.outputs


@cache
def layer_table(model: str) -> tuple[Layer, ...]:
    """Return the layers of a model in the official tables (workload ``xrbench-v0.1``).

    Every layer is a dense convolution, also where the real network has a depthwise one. Raises UsageError for a model
    that has no table.
    """
    tables = _layer_tables()
    if model not in tables:
        raise unknown("model", model, tables, ", which needs a table of layers")
    return tuple(tables[model])


@cache
def _layer_tables() -> dict[str, list[Layer]]:
    tables: dict[str, list[Layer]] = {}
    with (DATA / "layers.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            model = row.pop("model")
            tables.setdefault(model, []).append(Layer(**{name: int(value) for name, value in row.items()}))
    return tables


@cache
def layer_ends(model: str) -> tuple[float, ...]:
    """Return the ends of a model's layers as shares of its latency, the last is 1.0.

    The shares follow from the MACs of the layers, because the official table has one latency per model, none per layer.
    """
    return ends([layer.macs for layer in layer_table(model)])


def ends(parts: Iterable[float]) -> tuple[float, ...]:
    """Return the running sums of ``parts`` as shares of their total, without duplicates; the last is 1.0."""
    sums = list(accumulate(parts))
    total = sums[-1] if sums else 0.0
    if not total:
        return (1.0,)
    return (*dict.fromkeys(share for partial in sums if 0 < (share := partial / total) < 1), 1.0)
