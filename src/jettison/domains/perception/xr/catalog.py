"""The catalog of the unit models of XRBench: input shape, dataset, metric, target quality and sensor of every model.

Source: XRBench (arXiv:2211.08675, section 3 and table 1); see ``models.yaml``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jettison.core.documents import parse_yaml
from jettison.core.errors import UsageError, shown, unknown

DATA = files("jettison.domains.perception.xr")
MODEL_FIELDS = ("title", "network", "sensor", "input", "dataset", "metric", "target", "better", "file")
BETTER = ("higher", "lower")
LONGEST_SIDE = 1 << 16  # of a frame, any dimension


@dataclass(frozen=True)
class UnitModel:
    """A task of perception and the network that performs it.

    network: name in the files of the official program.
    input: shape of a frame without the batch.
    target: required quality, in ``metric``. better: whether ``higher`` or ``lower`` values of the metric are better.
    jitter_ms: the largest jitter of its sensors.
    file: an ONNX file or a folder that Jettison wrote, for a model that is not among the eleven.
    """

    name: str
    title: str
    network: str
    input: tuple[int, ...] = ()
    dataset: str = ""
    metric: str = ""
    target: float = 0.0
    better: str = "higher"
    jitter_ms: float = 0.0
    file: str = ""

    def accuracy_score(self, measured: float) -> float:
        """Return the accuracy score, 0 to 1, of a quality measured in ``metric`` (section 4.2).

        It is min(1, measured / target) if higher is better, min(1, target / measured) if lower is better. Raises
        UsageError for a model without a target and for a value that is not a number from 0 on.
        """
        if not self.target:
            raise UsageError(f"model {self.name!r} has no quality target")
        if not is_number(measured) or not 0 <= measured < float("inf"):
            raise UsageError(
                f"quality of model {self.name!r} = {shown(measured)}: a number that is not negative is needed"
            )
        ratio = measured / self.target if self.better == "higher" else self.target / max(measured, 1e-12)
        return min(1.0, max(0.0, ratio))


@cache
def _read(name: str) -> Any:
    return parse_yaml((DATA / name).read_text(encoding="utf-8"), name)


def model_names() -> list[str]:
    """Return the names of the eleven unit models, such as ``HT``."""
    return list(_read("models.yaml"))


def find_model(name: str) -> UnitModel:
    """Return a unit model by name. Raises UsageError that lists the models if there is none of that name."""
    if name not in _read("models.yaml"):
        raise unknown("model", name, model_names())
    return parse_model(name, _read("models.yaml")[name])


def parse_model(name: str, row: Any) -> UnitModel:
    """Build a unit model from a mapping with the fields of ``models.yaml``.

    Raises UsageError that names the field, its value and what is valid.
    """
    owner = f"model {name!r}"
    if not isinstance(row, Mapping):
        raise UsageError(f"{owner}: a mapping of fields is needed ({', '.join(MODEL_FIELDS)}); this is {shown(row)}")
    check_fields("field", row, MODEL_FIELDS, owner)
    sides, target = row.get("input", ()), row.get("target", 0.0)
    if not isinstance(sides, list | tuple) or not all(type(side) is int and 0 < side <= LONGEST_SIDE for side in sides):
        raise UsageError(
            f"{owner}: input = {shown(sides)}; a list of whole numbers from 1 to {LONGEST_SIDE:,} is needed"
        )
    if not is_number(target) or not 0 <= target < float("inf"):
        raise UsageError(f"{owner}: target = {shown(target)}; a number that is not negative is needed")
    if (better := row.get("better", "higher")) not in BETTER:
        raise unknown("value of better", better, BETTER, f" of {owner}")
    known = _read("sensors.yaml")
    sensors = check_names(row.get("sensor"), f"sensor of {owner}")
    for sensor in sensors:
        if sensor not in known:
            raise unknown("sensor", sensor, known, f" of {owner}")
    texts = {
        field: check_text(row[field], f"{field} of {owner}")
        for field in ("title", "network", "dataset", "metric", "file")
        if field in row
    }
    jitter = max((known[sensor]["jitter_ms"] for sensor in sensors), default=0.0)
    texts = {"title": name, "network": name} | texts
    return UnitModel(name, **texts, input=tuple(sides), target=target, better=better, jitter_ms=jitter)


def check_text(value: Any, what: str) -> str:
    """Return ``value`` if it is a string. Raises UsageError otherwise; ``what`` names the field in the message."""
    if not isinstance(value, str):
        raise UsageError(f"{what} = {shown(value)}: a text is needed")
    return value


def check_names(value: Any, what: str) -> tuple[str, ...]:
    """Return a tuple of names from one name, a list of names, or None. Raises UsageError for anything else."""
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise UsageError(f"{what} = {shown(value)}: a name or a list of names is needed")
    return tuple(listed)


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_fields(kind: str, names: Iterable[str], valid: Iterable[str], owner: str) -> None:
    """Raise UsageError for the first of ``names`` that is not among ``valid``."""
    for name in names:
        if name not in valid:
            raise unknown(kind, name, valid, f" of {owner}")
