"""Patterns of sparsity: a share of weights that become zero anywhere, or N of every M weights that are kept (N:M)."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jettison.core.errors import JettisonError, UsageError, shown, unknown
from jettison.encodings.grid import Grid

if TYPE_CHECKING:  # reading and planning patterns needs no torch, which takes seconds to import
    import torch

SCOPES = ("layer", "row")
ALLOCATIONS = ("uniform", "owl", "sensitivity")
INDEX_BITS = 2  # bits per kept weight of 2:4 for its place among its four
SPARSE_SCALE_BITS = 32  # bits of a group's scale in the CPU kernels for 2:4
SPARSE_CODES = (4, 8)  # bits of a code that those kernels support


@dataclass(frozen=True)
class Pattern:
    """Which weights of a linear may become zero.

    sparsity: share of the weights that become zero.
    kept, of: for N:M, ``kept`` of every ``of`` consecutive inputs of an output are kept; sparsity is 1 − kept / of.
    Both are 0 for other patterns.
    scope: without N:M, where the smallest weights are compared: in the whole ``layer``, or in every output's ``row``,
    so that all rows lose the same number. Empty means the method's own default.
    """

    sparsity: float
    kept: int = 0
    of: int = 0
    scope: str = ""

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity = {self.sparsity}: a share from 0 to 1, 1 excluded, is needed")
        if self.scope and self.scope not in SCOPES:
            raise UsageError(f"scope = {self.scope!r}: {' and '.join(SCOPES)} are valid")
        if self.of and self.scope:
            raise UsageError(f"scope = {self.scope!r}: {self.kept}:{self.of} already says among what is chosen")

    @classmethod
    def parse(cls, pattern: str | int) -> "Pattern":
        """Read an N:M pattern such as ``2:4``: 2 of every 4 weights are kept.

        YAML 1.1 reads an unquoted ``2:4`` as a number in base 60; such numbers are understood too.
        Raises UsageError for anything else.
        """
        text = f"{pattern // 60}:{pattern % 60}" if type(pattern) is int and pattern >= 60 else str(pattern)
        match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text)
        if not match or not 0 < int(match[1]) < int(match[2]):
            raise UsageError(f"pattern = {shown(pattern)}: N:M with 0 < N < M is needed, such as 2:4, of which N stay")
        kept, of = int(match[1]), int(match[2])
        return cls(1 - kept / of, kept, of)

    @property
    def grouped(self) -> bool:
        """Return whether this is an N:M pattern."""
        return self.of > 0

    def options(self) -> dict[str, Any]:
        """Return the options of a recipe's prune step that give this pattern."""
        options = {"pattern": str(self)} if self.grouped else {"sparsity": self.sparsity}
        return options | ({"scope": self.scope} if self.scope else {})

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.grouped else f"{self.sparsity:.4g}"

    def check_columns(self, columns: int) -> None:
        """Raise UsageError if rows of ``columns`` weights cannot have the pattern."""
        if self.grouped and columns % self.of:
            sizes = [f"{of // 2}:{of}" for of in (4, 8, 16, 32) if columns % of == 0]
            valid = ", ".join(sizes) or "a sparsity"
            raise UsageError(f"{self} does not divide a row of {columns} weights; valid here: {valid}")

    def zeros(self, weights: int) -> int:
        """Return how many of ``weights`` weights become zero."""
        return round(self.sparsity * weights)

    def check(self, weight: "torch.Tensor") -> None:
        """Raise JettisonError if a pruned weight (out, in) has fewer zeros than asked for."""
        zero = weight == 0
        if self.grouped:
            most = int(self.of - zero.unflatten(1, (-1, self.of)).sum(-1).min())
            if most > self.kept:
                raise JettisonError(f"{most} weights of {self.of} are left where {self} was asked for")
        elif self.scope == "row":
            least, asked = int(zero.sum(1).min()), self.zeros(weight.shape[1])
            if least < asked:
                raise JettisonError(f"a row has {least} zeros where {asked} were asked for")
        else:  # the method's default scope may be rows; rounded per row, the total can be a few zeros smaller
            rows, columns = weight.shape
            count, asked = int(zero.sum()), min(self.zeros(weight.numel()), rows * self.zeros(columns))
            if count < asked:
                raise JettisonError(f"{count} weights are zero where {asked} were asked for")

    def packed_bits(self, grid: Grid | None) -> float | None:
        """Return the bits per weight if zeros are not stored; None if no runtime supports such a weight.

        grid: of the codes; None for 16-bit weights.
        Only 2:4 is supported: by the CPU kernels with 4 and 8 bits symmetric (3.25 and 5.25 bits in groups of 128: half
        of the codes, two bits for the place of each, a 32-bit scale per group), and as PyTorch's semi-structured
        tensors with 16 bits, for GPUs (9 bits).
        """
        if (self.kept, self.of) != (2, 4):
            return None
        bits = 16 if grid is None else grid.bits
        if grid is not None and (grid.bits not in SPARSE_CODES or not grid.symmetric or grid.group_size < 1):
            return None
        return (bits + INDEX_BITS) / 2 + (0.0 if grid is None else SPARSE_SCALE_BITS / grid.group_size)


@dataclass(frozen=True)
class Allocation:
    """How sparsity is spread over the layers of a model.

    kind: ``uniform``; ``owl``, less sparsity where inputs have outliers; or ``sensitivity``, less sparsity where the
    model's output changes most.
    spread: how far the sparsity of a layer may be from the mean, up or down.
    """

    kind: str = "uniform"
    spread: float = 0.08

    def __post_init__(self):
        if self.kind not in ALLOCATIONS:
            raise unknown("allocation", self.kind, ALLOCATIONS)
        if not 0 < self.spread < 1:
            raise UsageError(f"spread = {self.spread}: a share between 0 and 1 is needed")

    def options(self) -> dict[str, Any]:
        """Return the options of a recipe's prune step that give this allocation."""
        return {} if self == Allocation() else {"allocation": self.kind, "spread": self.spread}
