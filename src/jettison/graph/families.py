"""The table of model families, families.yaml, read and checked."""

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator

from jettison.core.errors import UsageError, unknown
from jettison.core.validation import Fields, read_fields
from jettison.graph.anatomy import ROLES, Family


def _role(name: str) -> str:
    if name not in ROLES:
        raise unknown("role", name, ROLES, " of families.yaml")
    return name


Role = Annotated[str, AfterValidator(_role)]
Roles = Annotated[list[Role], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Experts(Fields):
    """Where the experts of a block lie, how checkpoints store them, and their gate."""

    at: str
    stored: Literal["separate", "stacked"]
    gate: Literal["gated", "clamped"]


class ExpertSizes(Fields):
    """The fields of a config that hold the number of experts and their width."""

    number: str
    width: str


class SizesRow(Fields):
    """How the sizes of all parameters follow from config.json; see ``graph.sizes``."""

    names: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    only: dict[str, list[Any]] = {}
    biases: dict[str, Roles]
    block: list[int | str]
    model: list[int | str]
    experts: ExpertSizes | None = None
    full_every: int | str | None = None
    layout: Literal["linear", "conv1d"] = "linear"


class ResidualRow(Fields):
    """Where the parts of a block lie that depth pruning merges; see ``graph.residual``. Paths are inside the block.

    at: of the module that is replaced; "" for the block.
    shortcut: a module, ``input``, or the name of a flag that says whether the input is added.
    same_padding: the field of the config that says whether convolutions pad as TensorFlow's SAME.
    """

    branch: list[str]
    at: str = ""
    absorbs: str = ""
    shortcut: str = ""
    after: str = ""
    pruned_after: str = ""
    tokens: bool = False
    same_padding: str = ""


class UnitRow(Fields):
    """What the blocks of one path are as units that a step-cache policy can skip."""

    kind: Literal["block", "down", "mid", "up"]
    inputs: list[str]
    outputs: list[str] = []
    parts: dict[str, Literal["attention", "mlp"]] = {}


class RateRow(Fields):
    """A learning rate, and the number of gates that it is for."""

    value: float
    gates: int


class CachingRow(Fields):
    """What step-cache policies must know of a denoiser."""

    rate: RateRow
    units: list[UnitRow]
    refused: list[str] = []


class FamilyRow(Fields):
    """A row of families.yaml; the head of that file explains the fields."""

    blocks: str
    linears: dict[str, Roles]
    fused: dict[str, Roles] = {}
    ends: list[str] = []
    domain: str = "text"
    experts: Experts | None = None
    router: str = ""
    folds: dict[str, Roles] = {}
    norm_offset: float = 0.0
    residual: ResidualRow | None = None
    inputs: dict[str, str] = {}
    caching: CachingRow | None = None
    sizes: SizesRow | None = None


def read_families(text: str) -> dict[str, Family]:
    """Read rows as families.yaml has them: model_type -> family.

    Raises UsageError that names the row, the field and what is valid.
    """
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"families.yaml is not YAML: {error}") from error
    return {name: _family(name, row) for name, row in rows.items()}


def _family(name: str, data: Any) -> Family:
    if not isinstance(data, dict):
        raise UsageError(f"family {name!r} of families.yaml: a mapping of fields is needed")
    say = lambda field, value, needed: f"family {name!r} of families.yaml: {field} = {value}: {needed}"
    row = read_fields(FamilyRow, data, say, "field", f" of family {name!r} in families.yaml")
    roles = {role for of_linear in row.linears.values() for role in of_linear}
    for source, readers in row.folds.items():
        if missing := set(readers) - roles:
            raise UsageError(f"family {name!r} of families.yaml: folds of {source}: no linear has role {missing.pop()}")
    if row.caching and len(row.caching.units) != len(paths := row.blocks.split()):
        raise UsageError(
            say("caching.units", f"{len(row.caching.units)} entries", f"one for each of {', '.join(paths)}")
        )
    as_tuples = lambda lists: {key: tuple(values) for key, values in lists.items()}
    return Family(
        name=name,
        blocks=row.blocks,
        linears=as_tuples(row.linears),
        fused=as_tuples(row.fused),
        experts=row.experts.model_dump() if row.experts else None,
        router=row.router,
        ends=tuple(row.ends),
        sizes=row.sizes.model_dump(exclude_unset=True) if row.sizes else None,
        domain=row.domain,
        folds=as_tuples(row.folds),
        norm_offset=row.norm_offset,
        residual=row.residual.model_dump() if row.residual else None,
        inputs=row.inputs,
        caching=row.caching,
    )


@cache
def families() -> dict[str, Family]:
    """Return the rows of families.yaml: model_type -> family."""
    return read_families((files("jettison.graph") / "families.yaml").read_text(encoding="utf-8"))
