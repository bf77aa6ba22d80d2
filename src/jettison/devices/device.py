"""Devices are data: rows of devices.yaml, files of the user's, or this very machine, measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from jettison.devices.machine import measure
from jettison.errors import UsageError, unknown

THIS = "this"
NUMBERS = ("bandwidth", "memory", "flops", "share")
DEFAULT_SHARE = 0.85


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes per second a good reader gets. memory: bytes. flops: per second."""

    name: str
    title: str
    bandwidth: float
    memory: float
    flops: float
    source: str


@cache
def _rows() -> dict[str, Any]:
    return yaml.safe_load((files("jettison.devices") / "devices.yaml").read_text(encoding="utf-8"))


def device_names() -> list[str]:
    return sorted(_rows())


def find_device(name: str | Path) -> Device:
    """A row's name, ``this`` (measured once, then remembered), or the path of a YAML file with one row's fields.

    Raises UsageError naming the field and what is valid.
    """
    if str(name) == THIS:
        return _device(THIS, measure())
    if str(name) in _rows():
        return _device(str(name), _rows()[str(name)])
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("device", str(name), [THIS, *_rows()], " (neither a known one nor a .yaml file)")
    try:
        row = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read device file {path}: {' '.join(str(error).split())}") from error
    return _device(path.stem, row)


def _device(name: str, row: Any) -> Device:
    if not isinstance(row, Mapping):
        raise UsageError(f"device {name!r}: a mapping with bandwidth, memory and flops is needed")
    for field in row:
        if field not in (*NUMBERS, "title", "source"):
            raise unknown("field", field, (*NUMBERS, "title", "source"), f" of device {name!r}")
    figures = {"share": DEFAULT_SHARE} | {field: row[field] for field in NUMBERS if field in row}
    for field in NUMBERS:
        value = figures.get(field)
        try:
            figures[field] = float(value)  # from a string too: YAML 1.1 takes 50e9 for one
        except (TypeError, ValueError):
            figures[field] = 0.0
        if not 0 < figures[field] < 1e18:
            raise UsageError(f"device {name!r}: {field} = {value!r}; a positive number is needed")
    if figures["share"] > 1:
        raise UsageError(f"device {name!r}: share = {figures['share']}; it is a part of the bandwidth, at most 1")
    return Device(
        name=name,
        title=str(row.get("title", name)),
        bandwidth=figures["bandwidth"] * figures["share"],
        memory=figures["memory"],
        flops=figures["flops"],
        source=str(row.get("source", "not stated")),
    )
