"""Devices are data: rows of devices.yaml, files of the user's, or this very machine, measured."""

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
RANGES = {
    "bandwidth": (1e8, 1e14, "bytes per second, from 1e8 to 1e14"),
    "share": (ulp(0.0), 1.0, "a part of the bandwidth, above 0 and at most 1"),
    "memory": (1e6, 1e14, "bytes, from 1e6 to 1e14"),
    "flops": (1e6, 1e17, "per second, from 1e6 to 1e17"),
    "cache": (0.0, 1e12, "bytes, from 0 to 1e12"),
    "overhead": (0.0, 0.1, "seconds, from 0 to 0.1"),
}


def _figure(value: Any) -> float:
    """Strings that are numbers too: YAML 1.1 takes 50e9 for one."""
    try:
        return float("nan" if isinstance(value, bool) else value)
    except (TypeError, OverflowError):
        raise ValueError from None


def _ranged(figure: str, default: float | None = None) -> Any:
    low, high, valid = RANGES[figure]
    return Field(default, ge=low, le=high, description=valid, validate_default=True)


Figure = Annotated[float, BeforeValidator(_figure)]


class DeviceFields(Fields):
    """A row of devices.yaml, or the file of a device. flops and sources are read by themselves."""

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


NEAREST = {"fp32": ("fp32", "fp16", "int8"), "fp16": ("fp16", "fp32", "int8"), "int8": ("int8", "fp16", "fp32")}


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes per second a good reader gets, ``share`` of what is stated. memory: bytes. flops: peaks per
    second by type, of fp32, fp16, int8 those known. cache: bytes of the last level. overhead: seconds to launch an
    operator. sources: where each figure is from."""

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
        """Operations per second in ``kind``; where that is not known, in the nearest type that is: for fp16 that is
        fp32, then int8; for int8 it is fp16, then fp32; for fp32 it is fp16, then int8. Raises UsageError."""
        if kind not in NEAREST:
            raise unknown("type of flops", kind, NEAREST)
        return next(self.flops[known] for known in NEAREST[kind] if known in self.flops)

    @property
    def source(self) -> str:
        texts = dict.fromkeys(self.sources.values())
        if len(texts) < 2:
            return next(iter(texts), "not stated")
        return "; ".join(f"{figure}: {text}" for figure, text in self.sources.items())

    @property
    def unverified(self) -> list[str]:
        """The figures whose source says so."""
        return [figure for figure, text in self.sources.items() if "unverified" in text]


@cache
def _rows() -> dict[str, Any]:
    return parse_yaml((files("jettison.devices") / "devices.yaml").read_text(encoding="utf-8"), "devices.yaml")


def device_names() -> list[str]:
    return sorted(_rows())


def find_device(name: str | Path) -> Device:
    """A row's name, ``this`` (measured once, then remembered), or the path of a YAML file with one row's fields.

    Raises UsageError naming the field, its value and what is valid.
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
    """Strings that are numbers too: YAML 1.1 takes 50e9 for one."""
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
    return {kind: _number(device, f"flops.{kind}", each) for kind, each in value.items()}


def _sources(device: str, row: Mapping[str, Any]) -> dict[str, str]:
    """By figure. A ``source`` stands for every figure that ``sources`` leaves out."""
    sources = row.get("sources", {})
    if not isinstance(sources, Mapping):
        raise UsageError(
            f"device {device!r}: sources = {shown(sources)}; valid: a text for each of {', '.join(SOURCED)}"
        )
    _check_names("figure", sources, SOURCED, f"{device}.sources")
    every = dict.fromkeys(SOURCED, row["source"]) if "source" in row else {}
    return {figure: _text(device, f"source of {figure}", text) for figure, text in (every | dict(sources)).items()}


def _check_names(kind: str, names: Mapping[str, Any], valid: Any, owner: str) -> None:
    for name in names:
        if name not in valid:
            raise unknown(kind, name, valid, f" of device {owner!r}")
