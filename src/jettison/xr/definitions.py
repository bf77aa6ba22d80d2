"""The definitions of XRBench as data: tasks, usage scenarios, accelerators, and how they are read from YAML.

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
    """The fields of a task in a scenario file.

    Values that depend on the other tasks are checked later, in ``_checked``.
    """

    model: Any
    fps: Any
    after: Any = None
    through: Any = "data"
    probability: Any = 1.0
    network: str | None = Field(None, description="a text is needed")


class ScenarioFields(Fields):
    """The fields of a scenario in a scenario file."""

    tasks: Any
    models: Any = None
    title: str | None = Field(None, description="a text is needed")
    official: str = Field("", description="a text is needed")


@dataclass(frozen=True)
class Task:
    """A unit model that runs at a fixed rate.

    fps: frames per second.
    after: models of the same scenario that a frame waits for.
    through: ``data`` if a frame needs their output, ``control`` if their output decides whether it is requested.
    probability: that a frame is requested, 0 to 1.
    network: the model's name in the files of the official program.
    """

    model: UnitModel
    fps: float
    after: tuple[str, ...] = ()
    through: str = "data"
    probability: float = 1.0
    network: str = ""

    @property
    def name(self) -> str:
        """The model's name, such as ``HT``."""
        return self.model.name

    @property
    def period_ms(self) -> float:
        """Milliseconds between two frames."""
        return 1000 / self.fps


@dataclass(frozen=True)
class Scenario:
    """A usage scenario: several tasks that run at once. official: its name in the files of the official program."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    official: str = ""

    @property
    def kind(self) -> str:
        """The class of the scenario in the paper (section 3.3).

        ``cascaded`` if all tasks are linked by dependencies and exactly one of them waits for no other, ``concurrent``
        if there is no dependency, else ``cascaded-concurrent``.
        """
        parents = {name for task in self.tasks for name in task.after}
        linked = [bool(task.after) or task.name in parents for task in self.tasks]
        if len(self.tasks) > 1 and all(linked) and sum(not task.after for task in self.tasks) == 1:
            return "cascaded"
        return "cascaded-concurrent" if any(linked) else "concurrent"

    def task(self, name: str) -> Task:
        """Return the task of a model. Raises UsageError for a model that the scenario does not have."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown("model", name, [task.name for task in self.tasks], f" of scenario {self.name!r}")

    def changed(self, name: str, **fields: Any) -> "Scenario":
        """Return a copy in which fields of one task (rate, probability, dependency) are changed.

        The copy is checked like a scenario file. Raises UsageError.
        """
        self.task(name)
        tasks = tuple(replace(task, **fields) if task.name == name else task for task in self.tasks)
        return _checked(replace(self, tasks=tasks))


@dataclass(frozen=True)
class Unit:
    """A sub-accelerator.

    dataflow: WS, OS or RS. pes: processing elements. noc_bw: bandwidth of its network on chip, in words per cycle.
    """

    dataflow: str
    pes: int
    noc_bw: int

    def __str__(self) -> str:
        return f"{self.dataflow} {self.pes}"


@dataclass(frozen=True)
class Accelerator:
    """An accelerator of XRBench: name ``A`` to ``M``, size ``4K`` or ``8K`` processing elements in all, its units."""

    name: str
    size: str
    units: tuple[Unit, ...]

    def __str__(self) -> str:
        return f"{self.name}/{self.size}"


@cache
def _read(name: str) -> Any:
    return parse_yaml((DATA / name).read_text(encoding="utf-8"), name)


def scenario_names() -> list[str]:
    """Return the names of the seven scenarios of XRBench."""
    return list(_read("scenarios.yaml"))


def find_scenario(source: str | Path) -> Scenario:
    """Return a scenario by name or from a file.

    source: a name, the official program's name, or ``FILE.yaml``; ``FILE.yaml:NAME`` if the file has several scenarios.
    Raises UsageError that names the scenario, the field, its value and what is valid: for unknown models, fields and
    dependencies, for invalid rates, and for circular dependencies.
    """
    rows, name = _read("scenarios.yaml"), str(source)
    official = {row["official"]: key for key, row in rows.items()}
    if official.get(name, name) in rows:
        key = official.get(name, name)
        return _scenario(key, rows[key])
    path, _, key = name.partition(".yaml:")
    if not name.endswith((".yaml", ".yml")) and not key:
        raise unknown("scenario", name, rows, " (neither a known one nor a .yaml file)")
    path = Path(f"{path}.yaml" if key else name)
    scenarios = read_yaml(path, "scenario file")
    if not isinstance(scenarios, Mapping) or not scenarios:
        raise UsageError(f"scenario file {path}: a mapping from names to scenarios is needed")
    if not key and len(scenarios) > 1:
        raise UsageError(
            f"scenario file {path} has several scenarios; write {path}:NAME with one of "
            f"{', '.join(map(str, scenarios))}"
        )
    key = key or next(iter(scenarios))
    if key not in scenarios:
        raise unknown("scenario", key, scenarios, f" of {path}")
    return replace(_scenario(key, scenarios[key]), name=f"{path}:{key}")


def _scenario(name: str, row: Any) -> Scenario:
    if not isinstance(row, Mapping) or not isinstance(row.get("tasks"), list) or not row["tasks"]:
        raise UsageError(f"scenario {name!r}: a mapping with a list of tasks is needed; this is {shown(row)}")
    say = lambda field, value, needed: f"{field} of scenario {name!r} = {value}: {needed}"
    read = read_fields(ScenarioFields, row, say, "field", f" of scenario {name!r}")
    models = {} if read.models is None else read.models
    if not isinstance(models, Mapping):
        raise UsageError(f"scenario {name!r}: models are a mapping from names to fields; this is {shown(models)}")
    own = {str(key): parse_model(str(key), fields) for key, fields in models.items()}
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
        raise UsageError(f"{where}: {', '.join(sorted({n for n in names if names.count(n) > 1}))} is listed twice")
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
            raise UsageError(
                f"{where}: {task.name} fps = {task.fps}: the time between two frames must be more than twice the "
                "sensor's jitter"
            )
        for name in task.after:
            if name not in names:
                raise unknown("model", name, names, f", which {task.name} comes after in {where}")
    done: list[str] = []  # tasks in an order in which every task comes after its dependencies
    while len(done) < len(names):
        free = [t.name for t in scenario.tasks if t.name not in done and set(t.after) <= set(done)]
        if not free:
            circle = ", ".join(name for name in names if name not in done)
            raise UsageError(f"{where}: the dependencies of {circle} are circular")
        done += free
    return scenario


def accelerator_names() -> list[str]:
    """Return the names of the thirteen accelerators, ``A`` to ``M``."""
    return list(_read("accelerators.yaml")["units"])


def find_accelerator(name: str, size: str = "4K") -> Accelerator:
    """Return an accelerator by name.

    name: ``A`` to ``M``; a size in the name, as in ``A/8K``, takes precedence over ``size``.
    Raises UsageError that lists the valid names or sizes.
    """
    table = _read("accelerators.yaml")
    name, _, suffix = str(name).partition("/")
    size = suffix or size
    if name not in table["units"]:
        raise unknown("accelerator", name, table["units"])
    if size not in table["sizes"]:
        raise unknown("size", size, table["sizes"], f" of accelerator {name}")
    parts = table["units"][name]
    noc = table["noc_bw"][size][len(parts)]
    return Accelerator(name, size, tuple(Unit(style, int(share * table["sizes"][size]), noc) for style, share in parts))
