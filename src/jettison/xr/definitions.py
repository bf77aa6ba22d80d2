"""What XRBench asks for, as data: unit models, sensors, usage scenarios, accelerators.

Source: XRBench (arXiv:2211.08675, sections 3 and 4) and the files of its official program; see ``data/*.yaml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from jettison.core.documents import parse_yaml, read_yaml
from jettison.core.errors import UsageError, shown, unknown
from jettison.core.validation import Fields, read_fields
from jettison.domains.perception.xr.catalog import (
    UnitModel,
    check_names,
    find_model,
    is_number,
    model_names,
    parse_model,
)

DATA = files("jettison.xr") / "data"
THROUGH = ("data", "control")
SLOWEST, FASTEST = 0.001, 10_000  # frames per second


class TaskFields(Fields):
    """A task of a scenario as a file has it. What hangs on other tasks is checked with them, in ``_checked``."""

    model: Any
    fps: Any
    after: Any = None
    through: Any = "data"
    probability: Any = 1.0
    network: str | None = Field(None, description="a text is needed")


class ScenarioFields(Fields):
    tasks: Any
    models: Any = None
    title: str | None = Field(None, description="a text is needed")
    official: str = Field("", description="a text is needed")


@dataclass(frozen=True)
class Task:
    """A unit model at a rate. A frame waits for what ``after`` names; see data/scenarios.yaml."""

    model: UnitModel
    fps: float
    after: tuple[str, ...] = ()
    through: str = "data"
    probability: float = 1.0
    network: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def period_ms(self) -> float:
        return 1000 / self.fps


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    tasks: tuple[Task, ...]
    official: str = ""

    @property
    def kind(self) -> str:
        """The paper's class: ``cascaded`` if every task hangs on another one, ``concurrent`` if none does, else
        ``cascaded-concurrent`` (section 3.3)."""
        parents = {name for task in self.tasks for name in task.after}
        linked = [bool(task.after) or task.name in parents for task in self.tasks]
        if len(self.tasks) > 1 and all(linked) and sum(not task.after for task in self.tasks) == 1:
            return "cascaded"
        return "cascaded-concurrent" if any(linked) else "concurrent"

    def task(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown("model", name, [task.name for task in self.tasks], f" of scenario {self.name!r}")

    def changed(self, name: str, **fields: Any) -> "Scenario":
        """With another rate, probability or dependency of one task; checked as a file would be."""
        self.task(name)
        tasks = tuple(replace(task, **fields) if task.name == name else task for task in self.tasks)
        return _checked(replace(self, tasks=tasks))


@dataclass(frozen=True)
class Unit:
    """A sub-accelerator: ``pes`` processing elements, ``noc_bw`` words per cycle."""

    dataflow: str
    pes: int
    noc_bw: int

    def __str__(self) -> str:
        return f"{self.dataflow} {self.pes}"


@dataclass(frozen=True)
class Accelerator:
    name: str
    size: str
    units: tuple[Unit, ...]

    def __str__(self) -> str:
        return f"{self.name}/{self.size}"


@cache
def _read(name: str) -> Any:
    return parse_yaml((DATA / name).read_text(encoding="utf-8"), name)


def scenario_names() -> list[str]:
    return list(_read("scenarios.yaml"))


def find_scenario(source: str | Path) -> Scenario:
    """A name, the official program's name for it, or ``FILE.yaml`` with one scenario (``FILE.yaml:NAME`` of several).

    Raises UsageError naming the scenario, the field, its value and what is valid: for unknown models, fields and
    dependencies, rates that are no rate, and dependencies that run in a circle.
    """
    rows, name = _read("scenarios.yaml"), str(source)
    official = {row["official"]: key for key, row in rows.items()}
    if official.get(name, name) in rows:
        key = official.get(name, name)
        return _scenario(key, rows[key])
    path, _, wanted = name.partition(".yaml:")
    if not name.endswith((".yaml", ".yml")) and not wanted:
        raise unknown("scenario", name, rows, " (neither a known one nor a .yaml file)")
    path = Path(f"{path}.yaml" if wanted else name)
    found = read_yaml(path, "scenario file")
    if not isinstance(found, Mapping) or not found:
        raise UsageError(f"scenario file {path}: a mapping from names to scenarios is needed")
    if not wanted and len(found) > 1:
        raise UsageError(f"scenario file {path} has several; say {path}:NAME with one of {', '.join(map(str, found))}")
    wanted = wanted or next(iter(found))
    if wanted not in found:
        raise unknown("scenario", wanted, found, f" of {path}")
    return replace(_scenario(wanted, found[wanted]), name=f"{path}:{wanted}")


def _scenario(name: str, row: Any) -> Scenario:
    if not isinstance(row, Mapping) or not isinstance(row.get("tasks"), list) or not row["tasks"]:
        raise UsageError(f"scenario {name!r}: a mapping with a list of tasks is needed; this is {shown(row)}")
    say = lambda field, value, needed: f"{field} of scenario {name!r} = {value}: {needed}"
    read = read_fields(ScenarioFields, row, say, "field", f" of scenario {name!r}")
    models = {} if read.models is None else read.models
    if not isinstance(models, Mapping):
        raise UsageError(f"scenario {name!r}: models are a mapping from names to fields; this is {shown(models)}")
    own = {str(key): parse_model(str(key), found) for key, found in models.items()}
    tasks = tuple(_task(name, task, own) for task in read.tasks)
    title = str(name) if read.title is None else read.title
    return _checked(Scenario(str(name), title, tasks, read.official))


def _task(scenario: str, row: Any, own: Mapping[str, UnitModel]) -> Task:
    if not isinstance(row, Mapping) or "model" not in row or "fps" not in row:
        raise UsageError(f"scenario {scenario!r}: a task is a mapping with model and fps; this is {shown(row)}")
    where = f"{row['model']} in scenario {scenario!r}"
    say = lambda field, value, needed: f"{field} of {where} = {value}: {needed}"
    read = read_fields(TaskFields, row, say, "field", f" of a task of scenario {scenario!r}")
    name = str(read.model)
    if name not in own and name not in model_names():
        raise unknown("model", name, [*own, *model_names()], f" of scenario {scenario!r}")
    model = own.get(name) or find_model(name)
    after = check_names(read.after, f"after of {where}")
    network = model.network if read.network is None else read.network
    return Task(model, read.fps, after, read.through, read.probability, network)


def _checked(scenario: Scenario) -> Scenario:
    where, names = f"scenario {scenario.name!r}", [task.name for task in scenario.tasks]
    if len(set(names)) < len(names):
        raise UsageError(f"{where}: {', '.join(sorted({n for n in names if names.count(n) > 1}))} stands there twice")
    for task in scenario.tasks:
        if not is_number(task.fps) or not SLOWEST <= task.fps <= FASTEST:
            raise UsageError(
                f"{where}: {task.name} fps = {shown(task.fps)}; valid: a rate from {SLOWEST} to {FASTEST:,}"
            )
        if not is_number(task.probability) or not 0 <= task.probability <= 1:
            raise UsageError(f"{where}: {task.name} probability = {shown(task.probability)}; valid: from 0 to 1")
        if task.through not in THROUGH:
            raise unknown("value of through", task.through, THROUGH, f" of {task.name} in {where}")
        if 2 * task.model.jitter_ms >= task.period_ms:
            raise UsageError(f"{where}: {task.name} fps = {task.fps}: its period is within the sensor's jitter")
        for name in task.after:
            if name not in names:
                raise unknown("model", name, names, f", which {task.name} comes after in {where}")
    done: list[str] = []
    while len(done) < len(names):
        free = [t.name for t in scenario.tasks if t.name not in done and set(t.after) <= set(done)]
        if not free:
            circle = ", ".join(name for name in names if name not in done)
            raise UsageError(f"{where}: the dependencies of {circle} run in a circle")
        done += free
    return scenario


def accelerator_names() -> list[str]:
    return list(_read("accelerators.yaml")["units"])


def find_accelerator(name: str, size: str = "4K") -> Accelerator:
    """``A`` to ``M``; ``A/8K`` names the size too. Raises UsageError that lists what there is."""
    table = _read("accelerators.yaml")
    name, _, given = str(name).partition("/")
    size = given or size
    if name not in table["units"]:
        raise unknown("accelerator", name, table["units"])
    if size not in table["sizes"]:
        raise unknown("size", size, table["sizes"], f" of accelerator {name}")
    parts = table["units"][name]
    noc = table["noc_bw"][size][len(parts)]
    return Accelerator(name, size, tuple(Unit(style, int(share * table["sizes"][size]), noc) for style, share in parts))
