"""Find the costs of a scenario's models: in the official table, by a roofline, or in a file."""

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
    """Return the costs of a scenario's models from one source; without any, of accelerator A at 4K.

    accelerator: ``A`` to ``M``, or with a size as in ``A/8K``: costs of the official table.
    devices: names of ``jettison devices``, every device one unit: costs by the roofline over ``workload``.
    file: YAML or JSON, unit -> model -> {latency_ms, energy_mj}.
    workload: ``native``, the PyTorch modules of ``size`` after ``recipes``; or ``xrbench-v0.1``, the layers of the
        official tables, which no recipe changes.
    recipes: model -> recipe; ``*`` stands for all others. Only for native models on devices.
    Raises UsageError for several sources and for invalid values.
    """
    if sum((accelerator is not None, bool(devices), file is not None)) > 1:
        raise UsageError("costs are those of an accelerator, of devices, or of a file; name only one of them")
    if recipes and (not devices or workload != WORKLOADS[0]):
        listed = ", ".join(recipe if model == "*" else f"{model}={recipe}" for model, recipe in recipes.items())
        raise UsageError(
            f"recipe = {listed}: only native models on devices are changed by a recipe; these costs are fixed"
        )
    if workload not in WORKLOADS:
        raise unknown("workload", workload, WORKLOADS)
    check_size(size)
    if file is not None:
        return read_costs(file)
    if not devices:
        return table_costs(find_accelerator("A" if accelerator is None else accelerator))
    units = [find_device(name) for name in devices]
    if workload != "native":
        return roofline_costs(units, {task.name: table_operators(task.name) for task in scenario.tasks})
    operators = {}
    with bar("count", len(scenario.tasks)) as progress:
        for name, variant in scenario_variants(scenario, size, recipes).items():
            operators[name] = count_operators(open_variant(variant))
            progress.advance()
    return roofline_costs(units, operators)


def read_costs(path: str | Path) -> Costs:
    """Read costs from a YAML or JSON file, unit -> model -> {latency_ms, energy_mj}. Raises UsageError."""
    return Costs.from_dict(read_yaml(Path(path), "costs"))  # JSON is YAML
