"""What a runtime loads of one checkpoint format: the rows of runtimes.yaml, read into classes."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

SORTS = {"head": "head", "embed": "embedding", "expert": "experts"}  # role -> sort of matrix; other roles are "linears"


@dataclass(frozen=True)
class Kind:
    """A set of grids that load: every combination of these bits, group sizes, symmetries and values.

    group_sizes: None means every size that divides a row.
    values, bits: None means all that an encoding of Jettison has.
    name: of the kernel or the type.
    bits_per_weight: as stored in the format, where it differs from ``Grid.bits_per_weight``.
    """

    bits: tuple[int, ...] | None
    group_sizes: tuple[int, ...] | None
    symmetric: tuple[bool, ...]
    values: tuple[str, ...] | None = ("int",)
    name: str = ""
    columns_multiple_of: int = 1
    rows_multiple_of: int = 1
    bits_per_weight: float | None = None


@dataclass(frozen=True)
class Part:
    """How one sort of matrix loads. Without kinds it stays in 16 bits. only, not_in: families; empty: no limits."""

    kinds: tuple[Kind, ...]
    verified: bool
    only: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Support:
    """What a runtime loads of one checkpoint format. parts: by sort of matrix (linears, head, embedding, experts); the
    other fields are explained in runtimes.yaml."""

    name: str
    parts: dict[str, Part]
    share: str
    stacked: bool
    may_stay: bool
    fused: tuple[str, ...]
    tied: bool
    one_grid: bool
    stored_dense: tuple[str, ...]
    where: str
    note: str
    source: str

    @property
    def written(self) -> bool:
        """Whether Jettison writes this format."""
        return self.name in written_formats()


@cache
def runtime_rows() -> dict[str, Any]:
    """Return the content of runtimes.yaml: name of the runtime -> its row."""
    return yaml.safe_load((files("jettison.formats") / "runtimes.yaml").read_text(encoding="utf-8"))


def written_formats() -> tuple[str, ...]:
    """Return the formats that Jettison writes, in order of preference: they are those that it loads itself."""
    return tuple(runtime_rows()["jettison"]["formats"])


def read_support(name: str, row: dict[str, Any]) -> Support:
    """Read the entry of one format in the row of a runtime."""
    linears, experts = Part(_kinds(row["grids"]), row["verified"]), row["experts"]
    return Support(
        name=name,
        parts={"linears": linears} | {sort: _part(row[sort], linears) for sort in SORTS.values()},
        share=experts.get("share", "fused"),
        stacked=experts.get("stacked", False),
        may_stay=experts.get("may_stay", True),
        fused=tuple(row["fused"]),
        tied=row.get("tied", False),
        one_grid=row.get("one_grid", False),
        stored_dense=tuple(row.get("stored_dense", ())),
        where=row["where"],
        note=row.get("note", ""),
        source=row["source"],
    )


def _kinds(rows: list[dict[str, Any]]) -> tuple[Kind, ...]:
    read = lambda value: None if value == "any" else tuple(value) if isinstance(value, list) else value
    return tuple(Kind(**{field: read(value) for field, value in row.items()}) for row in rows)


def _part(value: bool | dict[str, Any], linears: Part) -> Part:
    """From true (as linears), false (no grids), or a mapping."""
    fields = value if isinstance(value, dict) else {} if value else {"grids": []}
    return Part(
        kinds=_kinds(fields["grids"]) if "grids" in fields else linears.kinds,
        verified=fields.get("verified", linears.verified),
        only=tuple(fields.get("only", ())),
        not_in=tuple(fields.get("not_in", ())),
    )
