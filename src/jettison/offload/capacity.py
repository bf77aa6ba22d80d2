"""Users per device and energy per frame, from measured times; and the paper's table, recomputed from its figures.

While a user's offloaded half is under way, the device computes local halves. So the slower of both paths sets the rate
of offloaded users. What the device then has left serves further users entirely on the device.

Source: Privatar (arXiv:2604.17476), data of its figures. The formula is our reconstruction; it reproduces 2.37x.
"""

from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import Any

from pydantic import Field

from jettison.core.documents import parse_yaml, read_json, read_yaml
from jettison.core.errors import JettisonError, UsageError, shown, unknown
from jettison.core.numbers import check_number
from jettison.core.validation import Fields, read_fields

DATA = files("jettison.offload") / "data"
LONGEST_S, MOST_BYTES = 1e6, 1e12


class Times(Fields):
    """Measured times of one frame in seconds, and its bytes on the wire.

    local_s: the half that stays. transfer_s: to the worker and back. worker_s: the offloaded half there.
    whole_s: the whole network on the device.
    """

    local_s: float = Field(ge=0, le=LONGEST_S, description="seconds from 0 on are needed")
    transfer_s: float = Field(ge=0, le=LONGEST_S, description="seconds from 0 on are needed")
    worker_s: float = Field(ge=0, le=LONGEST_S, description="seconds from 0 on are needed")
    whole_s: float = Field(gt=0, le=LONGEST_S, description="seconds above 0 are needed")
    bytes_up: int = Field(0, ge=0, le=MOST_BYTES, description="a whole number from 0 on is needed")
    bytes_down: int = Field(0, ge=0, le=MOST_BYTES, description="a whole number from 0 on is needed")


@dataclass(frozen=True)
class Users:
    """Users that one device serves.

    offloaded: with their offloaded half on the worker. extra: entirely on the device, in the time that is left.
    whole: if nothing is offloaded. ratio: (offloaded + extra) / whole.
    """

    offloaded: float
    extra: float
    whole: float

    @property
    def total(self) -> float:
        """All users of the split; a fraction means a lower rate for one user."""
        return self.offloaded + self.extra

    @property
    def ratio(self) -> float:
        """How many times the users of a device that offloads nothing."""
        return self.total / self.whole

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON, ``users`` being the whole users that fit."""
        return asdict(self) | {"users": floor(self.total + 1e-9), "total": self.total, "ratio": self.ratio}


def users(times: Times, period_s: float) -> Users:
    """Return how many users a device serves if each needs one frame per ``period_s`` seconds.

    users = period / max(transfer + worker, local), plus what fits into the device's time that is left.
    Raises UsageError for a period that is not above 0, and for times that are all 0.
    """
    check_number("period_s", period_s, 1e-6, LONGEST_S)
    slower = max(times.transfer_s + times.worker_s, times.local_s)
    if not slower:
        raise UsageError("local_s, transfer_s and worker_s are all 0: no rate follows from them")
    offloaded = period_s / slower
    left_s = max(0.0, period_s - offloaded * times.local_s)
    return Users(offloaded, left_s / times.whole_s, period_s / times.whole_s)


class Radio(Fields):
    """Constants of a radio; see ``data/energy.yaml``."""

    up_j_per_byte: float = Field(ge=0, le=1, description="joules per byte from 0 on are needed")
    down_j_per_byte: float = Field(ge=0, le=1, description="joules per byte from 0 on are needed")
    active_w: float = Field(ge=0, le=1000, description="watts from 0 on are needed")
    source: str = Field(description="a text is needed")


class Processor(Fields):
    """Constants of a processor; see ``data/energy.yaml``."""

    busy_w: float = Field(gt=0, le=10_000, description="watts above 0 are needed")
    source: str = Field(description="a text is needed")


@dataclass(frozen=True)
class Energy:
    """The energy of a frame on the device in mJ. The worker's is not the device's, and is left out.

    whole_mj: if nothing is offloaded.
    """

    compute_mj: float
    radio_mj: float
    whole_mj: float

    @property
    def total_mj(self) -> float:
        """The energy of an offloaded frame."""
        return self.compute_mj + self.radio_mj

    @property
    def ratio(self) -> float:
        """How many times the energy of a frame that is not offloaded."""
        return self.total_mj / self.whole_mj

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return asdict(self) | {"total_mj": self.total_mj, "ratio": self.ratio}


def energy(times: Times, radio: Radio, processor: Processor) -> Energy:
    """Return the energy of one frame: busy watts times seconds, and the radio's joules for its bytes and its time."""
    compute = 1e3 * processor.busy_w * times.local_s
    return Energy(compute, radio_energy(times, radio), 1e3 * processor.busy_w * times.whole_s)


def radio_energy(times: Times, radio: Radio) -> float:
    """Return the mJ that the radio needs for a frame."""
    joules = times.bytes_up * radio.up_j_per_byte + times.bytes_down * radio.down_j_per_byte
    return 1e3 * (joules + radio.active_w * times.transfer_s)


@cache
def _read(name: str) -> Any:
    return parse_yaml((DATA / name).read_text(encoding="utf-8"), name)


def find_constants(
    radio: str = "wifi", processor: str = "headset", file: str | Path | None = None
) -> tuple[Radio, Processor]:
    """Return the constants of a radio and a processor by name. file: YAML in the form of ``data/energy.yaml``.

    Raises UsageError for an unknown name, and for a file with wrong fields.
    """
    tables = _read("energy.yaml") if file is None else read_yaml(Path(file), "energy file")
    constants = []
    for table, name, model in (("radios", radio, Radio), ("processors", processor, Processor)):
        rows = tables.get(table) if isinstance(tables, dict) else None
        if not isinstance(rows, dict) or name not in rows:
            raise unknown(table.removesuffix("s"), name, rows if isinstance(rows, dict) else (), " of the energy file")
        if not isinstance(rows[name], dict):
            raise UsageError(f"{table} {name} is {shown(rows[name])}; a mapping of fields is needed")
        say = lambda field, value, needed, what=f"{table} {name}": f"{field} of {what} = {value}: {needed}"
        constants.append(read_fields(model, rows[name], say, "field", f" of {table} {name}"))
    return constants[0], constants[1]


def paper_table() -> list[dict[str, Any]]:
    """Return the paper's table, recomputed: a row per number k of offloaded components.

    Each row has k, its times, ``total`` users and ``ratio`` by ``users``, and for every noise budget v (and ``none``)
    the rise of the loss over the local network.
    """
    paper = _read("privatar.yaml")
    base = paper["baselines"]["local"]
    rows = []
    for k, split in paper["split"].items():
        times = Times(**{name: split[name] for name in ("local_s", "transfer_s", "worker_s")},
                      whole_s=paper["period_s"] / base["users"])  # fmt: skip
        served = users(times, paper["period_s"])
        rises = {str(budget): loss / base["loss"] - 1 for budget, loss in split["loss"].items()}
        rows.append({"k": k, **times.model_dump(exclude={"bytes_up", "bytes_down"}), **served.to_dict(),
                     "loss_rise": rises})  # fmt: skip
    return rows


def headlines() -> dict[str, Any]:
    """Return the paper's two headline figures, and for each the rows k whose value, rounded as published, is the same.

    No row has both: 2.37x users is that of k = 14, whose loss rises by 8.3 %; a rise of 6.5 % (v = 1) is that of
    k = 2 and k = 12, of which k = 12 serves nearly as many users, 2.36x.
    """
    paper, rows = _read("privatar.yaml")["headline"], paper_table()
    by_users = [row["k"] for row in rows if round(row["ratio"], 2) == paper["users_ratio"]]
    by_loss = [row["k"] for row in rows if round(row["loss_rise"]["1"], 3) == paper["loss_rise"]]
    return {
        "users_ratio": {"published": paper["users_ratio"], "rows": by_users},
        "loss_rise": {"published": paper["loss_rise"], "rows": by_loss},
        "both": sorted({*by_users} & {*by_loss}),
    }


def read_times(path: str | Path) -> Times:
    """Read the times that ``jettison offload join --json`` measured.

    Raises UsageError for a file without them, as of a stream that the worker never answered.
    """
    where = str(path)
    try:
        data = read_json(Path(path))
    except JettisonError as error:
        raise UsageError(f"cannot read a report: {error}") from error
    measured = data.get("measured")
    if not isinstance(measured, dict) or "transfer_s" not in measured:
        raise UsageError(
            f"{where} has no measured transfer: a report of `jettison offload join` is needed, of frames that a worker "
            "computed"
        )
    say = lambda field, value, needed: f"{field} of {where} = {value}: {needed}"
    return read_fields(Times, measured, say, "field", f" of {where}")
