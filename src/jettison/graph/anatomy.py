"""Which linears a model has, where they lie, what they do. Read from a skeleton (``skeleton``) or a config (``sizes``).

Nothing here imports torch, whose import takes seconds: plans are made of anatomies alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

# What a model that no row knows calls its linears: last part of the path -> role.
USUAL_NAMES = {
    "q": ("q_proj", "query", "wq", "q_lin", "to_q"),
    "k": ("k_proj", "key", "wk", "k_lin", "to_k"),
    "v": ("v_proj", "value", "wv", "v_lin", "to_v"),
    "o": ("o_proj", "out_proj", "wo", "out_lin", "to_out"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "fc1", "w3", "c_fc", "fc_in", "dense_h_to_4h", "lin1"),
    "down": ("down_proj", "fc2", "w2", "c_proj", "fc_out", "dense_4h_to_h", "lin2"),
}


@dataclass(frozen=True)
class Family:
    """A row of families.yaml. ``name`` is "generic" for a model that has none. domain: what kind of model it is. folds,
    norm_offset: see ``graph.edits.find_folds``."""

    name: str
    blocks: str
    linears: dict[str, tuple[str, ...]]
    fused: dict[str, tuple[str, ...]]
    experts: dict[str, str] | None = None
    router: str = ""
    ends: tuple[str, ...] = ()
    sizes: dict[str, Any] | None = None
    domain: str = "text"
    folds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    norm_offset: float = 0.0

    @property
    def chain(self) -> bool:
        """Whether each block turns the states of the one before into its own, and nothing else: then the model is
        walked a block at a time. Other models stay whole."""
        return self.domain == "text"

    def roles(self, path: str) -> tuple[str, ...] | None:
        """The roles of the linear at ``path`` inside a block, None if the row does not list it."""
        if self.name == "generic":
            last = path.rpartition(".")[2]
            return next(((role,) for role, names in USUAL_NAMES.items() if last in names), ("linear",))
        return self.linears.get(re.sub(r"\.\d+\.", ".*.", path))

    @property
    def block_pattern(self) -> re.Pattern[str]:
        """What the module paths of blocks look like; ``blocks`` may have * for the numbers of lists around them."""
        return re.compile(re.escape(self.blocks).replace(r"\*", r"\d+") + ("" if "*" in self.blocks else r"\.\d+"))


@dataclass(frozen=True)
class Linear:
    """One matrix that a recipe can act on.

    name: module path. rows, columns: its shape as a map from ``columns`` inputs to ``rows`` outputs.
    block: number of its block, None for head and embedding. fused: what must share its grid. inputs: what shares its
    input, and hence its statistics (one expert's gate and up; the experts of a block only share ``fused``).
    layout: linear, conv1d, conv2d or embedding. Of a convolution ``columns`` are in / groups · height · width.
    """

    name: str
    roles: tuple[str, ...]
    rows: int
    columns: int
    block: int | None
    fused: str
    inputs: str
    layout: str = "linear"

    def __hash__(self) -> int:  # of all fields it would take most of the time of a plan
        return hash(self.name)

    @property
    def role(self) -> str:
        return self.roles[0] if len(self.roles) == 1 or "expert" in self.roles else "_".join(self.roles)

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Anatomy:
    """family, how many blocks, the linears in the order of the computation, and parameters in all. paths: of the
    blocks, where they lie in lists of lists."""

    family: Family
    blocks: int
    linears: tuple[Linear, ...]
    parameters: int
    tied: bool
    paths: tuple[str, ...] = ()

    def path(self, block: int) -> str:
        """The module path of a block."""
        return self.paths[block] if self.paths else f"{self.family.blocks}.{block}"

    def block_of(self, name: str) -> int | None:
        """The block that a parameter lies in, None for one outside."""
        found = self.family.block_pattern.match(name)
        if found is None or name[found.end() : found.end() + 1] not in ("", "."):
            return None
        return self.paths.index(found[0]) if self.paths else int(found[0].rpartition(".")[2])

    def __hash__(self) -> int:
        return hash((self.family.name, self.blocks, self.parameters))

    def __iter__(self) -> Iterator[Linear]:
        return iter(self.linears)

    def of_block(self, block: int | None) -> list[Linear]:
        return [linear for linear in self.linears if linear.block == block]

    @property
    def head(self) -> Linear | None:
        return next((linear for linear in self.linears if "head" in linear.roles), None)


@cache
def families() -> dict[str, Family]:
    rows = yaml.safe_load((files("jettison.graph") / "families.yaml").read_text(encoding="utf-8"))
    as_tuple = lambda value: (value,) if isinstance(value, str) else tuple(value)
    return {
        name: Family(
            name=name,
            blocks=row["blocks"],
            linears={path: as_tuple(role) for path, role in row["linears"].items()},
            fused={group: tuple(roles) for group, roles in row["fused"].items()},
            experts=row.get("experts"),
            router=row.get("router", ""),
            ends=tuple(row.get("ends", ())),
            sizes=row.get("sizes"),
            domain=row.get("domain", "text"),
            folds={source: tuple(roles) for source, roles in row.get("folds", {}).items()},
            norm_offset=row.get("norm_offset", 0.0),
        )
        for name, row in rows.items()
    }


def make_linear(
    name: str,
    roles: tuple[str, ...],
    rows: int,
    columns: int,
    block: int | None,
    family: Family,
    layout: str = "linear",
) -> Linear:
    """A linear with what it shares its grid and its input with."""
    parent = name.rpartition(".")[0]
    group = next((key for key, of in family.fused.items() if set(roles) & set(of)), "")
    inputs = f"{parent}.{group}" if group else name
    fused = re.sub(r"\.\d+\.([^.]*)$", r".\1", inputs) if "expert" in roles else inputs
    return Linear(name, roles, rows, columns, block, fused, inputs, layout)


def make_embedding(name: str, rows: int, columns: int) -> Linear:
    return Linear(name, ("embed",), rows, columns, None, name, name, "embedding")
