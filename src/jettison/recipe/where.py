"""The field ``where`` of a step: the linears that the step applies to.

In a recipe it is a mapping with role and block, or a list of such mappings.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jettison.core.errors import UsageError, shown, unknown

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "expert", "router", "head", "embed", "linear")
ROLES += ("conv", "depthwise", "stem")  # roles in image classifiers
LAST_BLOCK = 9999


@dataclass(frozen=True)
class Where:
    """The linears that a step applies to: those with one of the roles in one of the blocks, and those of ``others``.

    An empty ``role`` means all roles but embed and router; an empty ``block`` means everywhere.
    """

    role: tuple[str, ...] = ()
    block: tuple[int, ...] = ()
    others: tuple["Where", ...] = ()

    def matches(self, roles: Iterable[str], block: int | None) -> bool:
        """Return whether a linear with these roles in this block (None: outside the blocks) is one of them."""
        if any(other.matches(roles, block) for other in self.others):
            return True
        if self.block and block not in self.block:
            return False
        return bool(set(self.role) & set(roles)) if self.role else not {"embed", "router"} & set(roles)

    @property
    def blocks(self) -> list[int]:
        """All blocks that are named, also in ``others``."""
        return [*self.block, *(block for other in self.others for block in other.blocks)]

    def in_any_block(self) -> "Where":
        """Return the same without the blocks."""
        return Where(self.role, (), tuple(other.in_any_block() for other in self.others))

    def to_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return ``where`` as in a recipe: a mapping, or a list of mappings."""
        own = {"role": list(self.role), "block": _spans(self.block)}
        own = {name: value for name, value in own.items() if value}
        return [own, *(other.to_dict() for other in self.others)] if self.others else own

    def __str__(self) -> str:
        where = ", ".join(self.role) or "all linears"
        blocks = f" of blocks {', '.join(map(str, _spans(self.block)))}" if self.block else ""
        return "; ".join([where + blocks, *map(str, self.others)])


def parse_where(data: Any) -> Where:
    """Read the field ``where`` of a recipe. Raises UsageError that names the field, its value and what is valid."""
    if isinstance(data, list) and data and not any(isinstance(entry, list) for entry in data):
        first, *others = map(parse_where, data)
        return replace(first, others=tuple(others))
    if not isinstance(data, Mapping) or not data:
        raise UsageError(f"'where' is a mapping with role and block, or a list of such; this is {shown(data)}")
    for name in data:
        if name not in ("role", "block"):
            raise unknown("field of where", name, ("role", "block"))
    roles = _listed("role", data["role"]) if "role" in data else []
    for role in roles:
        if role not in ROLES:
            raise unknown("role", role, ROLES)
    spans = [_parse_span(entry) for entry in _listed("block", data["block"])] if "block" in data else []
    blocks = [block for span in spans for block in span]
    for name, entries in (("role", roles), ("block", blocks)):
        if len(set(entries)) < len(entries):
            twice = max(entries, key=entries.count)
            raise UsageError(f"{name} {twice} of where is listed twice")
    return Where(tuple(roles), tuple(blocks))


def _listed(name: str, value: Any) -> list:
    """Return one value or several as a list; raise UsageError for an empty list."""
    listed = list(value) if isinstance(value, list | tuple | range) else [value]
    if not listed:
        raise UsageError(f"{name} of where is an empty list: leave {name} out, or name at least one")
    return listed


def _parse_span(entry: Any) -> range:
    """Read a number of a block, or a span such as 0-3."""
    span = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", entry if isinstance(entry, str) else shown(entry))
    if not span:
        valid = f"a number from 0 to {LAST_BLOCK} or a span such as 0-3 is needed"
        raise UsageError(f"block {shown(entry)} of where: {valid}")
    first, last = int(span[1]), int(span[2] or span[1])
    if last < first:
        raise UsageError(f"block {shown(entry)} of where: a span begins with the lower number, {last}-{first}")
    return range(first, last + 1)


def _spans(blocks: Iterable[int]) -> list[int | str]:
    """Return block numbers as a recipe writes them: runs of three or more become a span such as 0-3."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [entry for run in runs for entry in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]
