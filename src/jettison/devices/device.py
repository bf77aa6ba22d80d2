"""Devices as data: rows of devices.yaml, files that a user writes, or this machine, measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import ulp
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jettison.core.documents import parse_yaml, read_yaml
from jettison.core.errors import UsageError, shown, unknown
from jettison.core.validation import Fields, read_fields
from jettison.devices.machine import measure

THIS = "this"
SOURCED = ("bandwidth", "memory", "flops", "cache", "overhead")
RANGES = {  # smallest and largest valid value, and how an error describes them
    "bandwidth": (1e8, 1e14, "bytes per second, from 1e8 to 1e14"),
    "share": (ulp(0.0), 1.0, "a part of the bandwidth, above 0 and at most 1"),
    "memory": (1e6, 1e14, "bytes, from 1e6 to 1e14"),
    "flops": (1e6, 1e17, "per second, from 1e6 to 1e17"),
    "cache": (0.0, 1e12, "bytes, from 0 to 1e12"),
    "overhead": (0.0, 0.1, "seconds, from 0 to 0.1"),
}


def _figure(value: Any) -> float:
    """Return a number, also from a string: YAML 1.1 reads 50e9 as one. A bool becomes NaN, which no range admits."""
    try:
        return float("nan" if isinstance(value, bool) else value)
    except (TypeError, OverflowError):
        raise ValueError from None  # pydantic turns only ValueError into a validation error


def _ranged(figure: str, default: float | None = None) -> Any:
    low, high, valid = RANGES[figure]
    return Field(default, ge=low, le=high, description=valid, validate_default=True)


Figure = Annotated[float, BeforeValidator(_figure)]


class DeviceFields(Fields):
    """The fields of a row of devices.yaml or of a device file. ``flops`` and ``sources`` are checked separately."""

    title: str | None = Field(None, description="a text")
    share: Figure = _ranged("share", 0.85)
    bandwidth: Figure = _ranged("bandwidth")
    memory: Figure = _ranged("memory")
    flops: Any = None
    cache: Figure = _ranged("cache", 0.0)
    overhead: Figure = _ranged("overhead", 0.0)
    source: str | None = Field(None, description="a text")
    sources: Any = None
    measured: Any = None


# For every type of arithmetic, whose peak stands in for it where it is not known, the nearest first.
NEAREST = {"fp32": ("fp32", "fp16", "int8"), "fp16": ("fp16", "fp32", "int8"), "int8": ("int8", "fp16", "fp32")}


@dataclass(frozen=True)
class Device:
    """The figures of a device.

    bandwidth: bytes per second that a well-written reader gets: ``share`` of the stated bandwidth.
    memory: bytes.
    flops: peak operations per second by type (fp32, fp16, int8), only those that are known.
    cache: bytes of the last level of cache.
    overhead: seconds to launch an operator.
    sources: figure -> where it is from.
    share: the part of the stated bandwidth that ``bandwidth`` is.
    """

    name: str
    title: str
    bandwidth: float
    memory: float
    flops: Mapping[str, float]
    cache: float = 0.0
    overhead: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0

    def peak(self, kind: str = "fp16") -> float:
        """Return the peak operations per second in a type of arithmetic.

        kind: fp32, fp16 or int8. Where its peak is not known, the peak of the nearest known type is returned: for fp16
        that of fp32, then int8; for int8 that of fp16, then fp32; for fp32 that of fp16, then int8.
        Raises UsageError for any other ``kind``.
        """
        if kind not in NEAREST:
            raise unknown("type of flops", kind, NEAREST)
        return next(self.flops[known] for known in NEAREST[kind] if known in self.flops)

    @property
    def source(self) -> str:
        """The sources of all figures as one text."""
        texts = dict.fromkeys(self.sources.values())
        if len(texts) < 2:
            return next(iter(texts), "not stated")
        return "; ".join(f"{figure}: {text}" for figure, text in self.sources.items())

    @property
    def unverified(self) -> list[str]:
        """The names of the figures whose source contains "unverified"."""
        return [figure for figure, text in self.sources.items() if "unverified" in text]


@cache
def _rows() -> dict[str, Any]:
    return parse_yaml((files("jettison.devices") / "devices.yaml").read_text(encoding="utf-8"), "devices.yaml")


def device_names() -> list[str]:
    """Return the names of the devices in devices.yaml, sorted."""
    return sorted(_rows())


def find_device(name: str | Path) -> Device:
    """Return a device.

    name: the name of a row of devices.yaml; ``this`` for this machine, which is measured once; or the path of a YAML
        file with the fields of one row.
    Raises UsageError that names the field, its value and what is valid.
    """
    if str(name) == THIS:
        return _device(THIS, measure())
    if str(name) in _rows():
        return _device(str(name), _rows()[str(name)])
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("device", str(name), [THIS, *_rows()], " (neither a known one nor a .yaml file)")
    return _device(path.stem, read_yaml(path, "device file"))


def _device(name: str, row: Any) -> Device:
    if not isinstance(row, Mapping):
        raise UsageError(f"device {name!r}: a mapping with bandwidth, memory and flops is needed")
    say = lambda field, value, needed: f"device {name!r}: {field} = {value}; valid: {needed}"
    read = read_fields(DeviceFields, row, say, "field", f" of device {name!r}")
    figures = {figure: getattr(read, figure) for figure in RANGES if figure not in ("flops", "bandwidth")}
    return Device(
        name,
        name if read.title is None else read.title,
        read.bandwidth * read.share,
        flops=_flops(name, read.flops),
        sources=_sources(name, row),
        **figures,
    )


def _number(device: str, figure: str, value: Any) -> float:
    """Return a number in the range of its figure, also from a string: YAML 1.1 reads 50e9 as one."""
    low, high, valid = RANGES[figure.partition(".")[0]]
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not low <= number <= high:
        raise UsageError(f"device {device!r}: {figure} = {shown(value)}; valid: {valid}")
    return number


def _text(device: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"device {device!r}: {field} = {shown(value)}; valid: a text")
    return value


def _flops(device: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return {"fp32": _number(device, "flops", value)}
    _check_names("type of flops", value, NEAREST, device)
    if not value:
        raise UsageError(f"device {device!r}: flops = {value!r}; valid: a number by type, for {', '.join(NEAREST)}")
    return {kind: _number(device, f"flops.{kind}", peak) for kind, peak in value.items()}


def _sources(device: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Return the source of every figure. The text in ``source`` holds for all figures that ``sources`` leaves out."""
    sources = row.get("sources", {})
    if not isinstance(sources, Mapping):
        raise UsageError(
            f"device {device!r}: sources = {shown(sources)}; valid: a text for each of {', '.join(SOURCED)}"
        )
    _check_names("figure", sources, SOURCED, f"{device}.sources")
    defaults = dict.fromkeys(SOURCED, row["source"]) if "source" in row else {}
    return {figure: _text(device, f"source of {figure}", text) for figure, text in (defaults | dict(sources)).items()}


def _check_names(kind: str, names: Mapping[str, Any], valid: Any, owner: str) -> None:
    for name in names:
        if name not in valid:
            raise unknown(kind, name, valid, f" of device {owner!r}")
