"""Where costs come from: the official table, a roofline, a file, or this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jettison.core.documents import read_yaml
from jettison.core.errors import UsageError, unknown
from jettison.core.progress import bar
from jettison.devices.device import find_device
from jettison.xr.costs import Costs, table_costs
from jettison.xr.definitions import Scenario, find_accelerator
from jettison.xr.live import scenario_variants
from jettison.xr.operators import count_operators, roofline_costs, table_operators
from jettison.xr.variants import check_size, open_variant

WORKLOADS = ("native", "xrbench-v0.1")


def find_costs(
    scenario: Scenario,
    *,
    accelerator: str | None = None,
    devices: Sequence[str] = (),
    file: str | Path | None = None,
    workload: str = "native",
    size: str = "full",
    recipes: Mapping[str, str] | None = None,
) -> Costs:
    """Of one of these; without any, accelerator A at 4K.

    accelerator: ``A`` to ``M``, ``A/8K``: the official table. devices: names of ``jettison devices``, each one a unit,
    by the roofline over ``workload``: ``native``, the modules of ``size`` after ``recipes``; ``xrbench-v0.1``, the
    frozen layer tables, which no recipe changes. file: YAML or JSON, unit -> model -> latency_ms, energy_mj. Raises
    UsageError.
    """
    if sum((accelerator is not None, bool(devices), file is not None)) > 1:
        raise UsageError("costs of an accelerator, of devices, or of a file: one of them")
    if recipes and (not devices or workload != WORKLOADS[0]):
        given = ", ".join(recipe if model == "*" else f"{model}={recipe}" for model, recipe in recipes.items())
        raise UsageError(f"recipe = {given}: only native models on devices are changed by one; these costs are fixed")
    if workload not in WORKLOADS:
        raise unknown("workload", workload, WORKLOADS)
    check_size(size)
    if file is not None:
        return read_costs(file)
    if not devices:
        return table_costs(find_accelerator("A" if accelerator is None else accelerator))
    found = [find_device(name) for name in devices]
    if workload != "native":
        return roofline_costs(found, {task.name: table_operators(task.name) for task in scenario.tasks})
    operators = {}
    with bar("count", len(scenario.tasks)) as progress:
        for name, variant in scenario_variants(scenario, size, recipes).items():
            operators[name] = count_operators(open_variant(variant))
            progress.advance()
    return roofline_costs(found, operators)


def read_costs(path: str | Path) -> Costs:
    return Costs.from_dict(read_yaml(Path(path), "costs"))  # JSON is YAML
