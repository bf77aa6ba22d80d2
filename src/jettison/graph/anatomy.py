"""The anatomy of a model: its linear layers, their place, shape and role.

An anatomy is read from a skeleton (``graph.skeleton``) or from a config (``graph.sizes``). This file does not import
torch, whose import takes seconds, because a plan needs only the anatomy.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jettison.graph.families import CachingRow

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "expert", "router", "head", "embed", "linear")
ROLES += ("conv", "depthwise", "stem")  # of image classifiers
OWN = "jettison_"  # how the model_type of a model of our own begins, see ``graph.own_models``
# The usual names of linears, for models without a row in families.yaml: role -> last part of the module path.
USUAL_NAMES = {
    "q": ("q_proj", "query", "wq", "q_lin", "to_q"),
    "k": ("k_proj", "key", "wk", "k_lin", "to_k"),
    "v": ("v_proj", "value", "wv", "v_lin", "to_v"),
    "o": ("o_proj", "out_proj", "wo", "out_lin", "to_out"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "fc1", "w3", "c_fc", "fc_in", "dense_h_to_4h", "lin1"),
    "down": ("down_proj", "fc2", "w2", "c_proj", "fc_out", "dense_4h_to_h", "lin2"),
    "router": ("gate", "router", "shared_expert_gate"),
}
# The place of an expert's linear in a block, see ``graph.experts``.
EXPERT_PATH = re.compile(r"(^|\.)experts\.\d+\.|\.\d+\.expert$")


@dataclass(frozen=True)
class Family:
    """A row of families.yaml, whose head explains the fields.

    name: the model_type, or "generic" for a model without a row.
    domain: the kind of model, "text", "vision", "diffusion" or "perception".
    inputs: of a denoiser, see ``graph.denoisers``.
    caching: of a denoiser, see ``graph.families.CachingRow``.
    folds, norm_offset: see ``graph.edits.find_folds``.
    residual: see ``graph.families.ResidualRow``.
    """

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
    residual: dict[str, Any] | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    caching: "CachingRow | None" = None

    @property
    def own(self) -> bool:
        """Whether it is a model of Jettison's own, which no library has."""
        return self.name.startswith(OWN)

    @property
    def chain(self) -> bool:
        """Whether the model is a plain chain: every block reads only the hidden states of the block before it.

        A chain is run one block at a time (``graph.walk``). Other models stay whole in memory (``graph.whole``).
        """
        return self.domain == "text"

    def roles(self, path: str) -> tuple[str, ...] | None:
        """Return the roles of the linear at ``path`` inside a block, or None if the row does not list it."""
        if self.name == "generic":
            last = path.rpartition(".")[2]
            expert = ("expert",) if self.experts and EXPERT_PATH.search(path) else ()
            if self.experts and set(path.split(".")[:-1]) & set(USUAL_NAMES["router"]):
                return ("router",)  # a router of more than one module
            return next(((role, *expert) for role, names in USUAL_NAMES.items() if last in names), ("linear", *expert))
        return self.linears.get(re.sub(r"\.\d+\.", ".*.", path))  # the row writes * for the number of an expert

    @property
    def block_pattern(self) -> re.Pattern[str]:
        """The pattern that the module paths of blocks match.

        ``blocks`` may contain *, which stands for a number where the blocks lie in lists of lists. Several paths are
        separated by spaces, in the order in which they are run.
        """
        paths = "|".join(re.escape(path).replace(r"\*", r"\d+") for path in self.blocks.split())
        return re.compile(f"(?:{paths})" + ("" if "*" in self.blocks else r"\.\d+"))

    def place(self, path: str) -> int:
        """Return the number of the path in ``blocks`` that matches the path of a block."""
        patterns = [re.escape(blocks).replace(r"\*", r"\d+") for blocks in self.blocks.split()]
        return next((number for number, pattern in enumerate(patterns) if re.match(pattern, path)), 0)


@dataclass(frozen=True)
class Linear:
    """One matrix that a recipe can act on.

    name: the module path.
    rows, columns: the shape of the matrix, which maps ``columns`` inputs to ``rows`` outputs; for a convolution,
        ``columns`` is in / groups · height · width.
    block: the number of its block; None for the head and the embedding.
    fused: a key; linears with an equal key must share a grid.
    inputs: a key; linears with an equal key read the same input and so share statistics. gate and up of one expert
        have the same ``inputs``; the experts of a block share only ``fused``.
    layout: linear, conv1d, conv2d or embedding.
    """

    name: str
    roles: tuple[str, ...]
    rows: int
    columns: int
    block: int | None
    fused: str
    inputs: str
    layout: str = "linear"

    def __hash__(self) -> int:  # a hash of all fields would take most of the time of a plan
        return hash(self.name)

    @property
    def role(self) -> str:
        """The role as one word; the roles of a fused matrix are joined by "_", "expert" is not."""
        return self.roles[0] if len(self.roles) == 1 or "expert" in self.roles else "_".join(self.roles)

    @property
    def weights(self) -> int:
        """The number of weights."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Anatomy:
    """The structure of a model.

    family: the row of families.yaml that describes it.
    blocks: the number of blocks.
    linears: in the order of the computation.
    parameters: the number of parameters of the whole model.
    tied: whether head and embedding are one matrix.
    paths: the module paths of the blocks, where the blocks lie in lists of lists; else empty.
    """

    family: Family
    blocks: int
    linears: tuple[Linear, ...]
    parameters: int
    tied: bool
    paths: tuple[str, ...] = ()

    def path(self, block: int) -> str:
        """Return the module path of a block."""
        return self.paths[block] if self.paths else f"{self.family.blocks}.{block}"

    def block_of(self, name: str) -> int | None:
        """Return the number of the block that a parameter belongs to, or None if it is outside the blocks."""
        match = self.family.block_pattern.match(name)
        if match is None or name[match.end() : match.end() + 1] not in ("", "."):
            return None
        return self.paths.index(match[0]) if self.paths else int(match[0].rpartition(".")[2])

    def __hash__(self) -> int:
        return hash((self.family.name, self.blocks, self.parameters))

    def __iter__(self) -> Iterator[Linear]:
        return iter(self.linears)

    def of_block(self, block: int | None) -> list[Linear]:
        """Return the linears of a block; with None, those outside the blocks."""
        return [linear for linear in self.linears if linear.block == block]

    @property
    def head(self) -> Linear | None:
        """The linear that computes the logits, None if there is none."""
        return next((linear for linear in self.linears if "head" in linear.roles), None)


def make_linear(
    name: str,
    roles: tuple[str, ...],
    rows: int,
    columns: int,
    block: int | None,
    family: Family,
    layout: str = "linear",
) -> Linear:
    """Make a linear, with the keys that name which linears share its grid (``fused``) and its input (``inputs``)."""
    parent = name.rpartition(".")[0]
    group = next((key for key, members in family.fused.items() if set(roles) & set(members)), "")
    shared = f"{parent}.{group}" if group else name
    # The experts of a block share their grid but not their inputs: without the expert's number the keys are equal.
    fused = re.sub(r"\.\d+\.([^.]*)$", r".\1", shared) if "expert" in roles else shared
    # Without a row it is not known whether linears called key and value read the same: in RWKV they do not.
    inputs = name if family.name == "generic" else shared
    return Linear(name, roles, rows, columns, block, fused, inputs, layout)


def make_embedding(name: str, rows: int, columns: int) -> Linear:
    """Make the ``Linear`` of an embedding, which shares its grid and its input with no other."""
    return Linear(name, ("embed",), rows, columns, None, name, name, "embedding")
