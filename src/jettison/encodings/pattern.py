"""Which weights may be zero: a share of them wherever they are, or so many of every few (N:M)."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jettison.core.errors import JettisonError, UsageError, shown, unknown
from jettison.encodings.grid import Grid

if TYPE_CHECKING:  # patterns are read and planned without torch, which takes seconds to import
    import torch

SCOPES = ("layer", "row")
ALLOCATIONS = ("uniform", "owl", "sensitivity")
INDEX_BITS = 2  # of a kept weight of 2:4: where it lies among its four
SPARSE_SCALE_BITS = 32  # of a group of 2:4 values in the CPU kernels
SPARSE_CODES = (4, 8)  # bits that those kernels serve


@dataclass(frozen=True)
class Pattern:
    """``sparsity`` is the share of weights that become zero.

    kept, of: with N:M, of every ``of`` consecutive inputs of an output ``kept`` stay; sparsity is then 1 − kept / of.
    scope: without N:M, among what the smallest are sought: the whole ``layer``, or every output's ``row``, each of
    which then loses as many; empty for what the method is known with.
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
        """``2:4``: 2 of every 4 stay. YAML 1.1 reads that, without quotes, as a number in base 60, which is read too.

        Raises UsageError for anything else.
        """
        text = f"{pattern // 60}:{pattern % 60}" if type(pattern) is int and pattern >= 60 else str(pattern)
        found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise UsageError(f"pattern = {shown(pattern)}: N:M with 0 < N < M is needed, such as 2:4, of which N stay")
        kept, of = int(found[1]), int(found[2])
        return cls(1 - kept / of, kept, of)

    @property
    def grouped(self) -> bool:
        return self.of > 0

    def options(self) -> dict[str, Any]:
        """As in a recipe."""
        own = {"pattern": str(self)} if self.grouped else {"sparsity": self.sparsity}
        return own | ({"scope": self.scope} if self.scope else {})

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.grouped else f"{self.sparsity:.4g}"

    def check_columns(self, columns: int) -> None:
        """Raises UsageError if rows of so many weights cannot have the pattern."""
        if self.grouped and columns % self.of:
            sizes = [f"{of // 2}:{of}" for of in (4, 8, 16, 32) if columns % of == 0]
            valid = ", ".join(sizes) or "a sparsity"
            raise UsageError(f"{self} does not divide a row of {columns} weights; valid here: {valid}")

    def zeros(self, weights: int) -> int:
        """How many of so many weights become zero."""
        return round(self.sparsity * weights)

    def check(self, weight: "torch.Tensor") -> None:
        """Count the zeros of a pruned weight (out, in). Raises JettisonError if there are fewer than asked for."""
        zero = weight == 0
        if self.grouped:
            most = int(self.of - zero.unflatten(1, (-1, self.of)).sum(-1).min())
            if most > self.kept:
                raise JettisonError(f"{most} weights of {self.of} are left where {self} was asked for")
        elif self.scope == "row":
            least, asked = int(zero.sum(1).min()), self.zeros(weight.shape[1])
            if least < asked:
                raise JettisonError(f"a row has {least} zeros where {asked} were asked for")
        else:  # whichever scope the method is known with: whole weights of every row may be a few less
            rows, columns = weight.shape
            found, asked = int(zero.sum()), min(self.zeros(weight.numel()), rows * self.zeros(columns))
            if found < asked:
                raise JettisonError(f"{found} weights are zero where {asked} were asked for")

    def packed_bits(self, grid: Grid | None) -> float | None:
        """Bits per weight where zeros are not stored; None where nothing runs such a weight.

        2:4 alone: for the CPU kernels with 4 and 8 bits symmetric (3.25 and 5.25 in groups of 128: half of the codes,
        two bits to place each, a 32-bit scale), and as PyTorch's semi-structured tensors with 16 bits, for GPUs (9).
        """
        if (self.kept, self.of) != (2, 4):
            return None
        bits = 16 if grid is None else grid.bits
        if grid is not None and (grid.bits not in SPARSE_CODES or not grid.symmetric or grid.group_size < 1):
            return None
        return (bits + INDEX_BITS) / 2 + (0.0 if grid is None else SPARSE_SCALE_BITS / grid.group_size)


@dataclass(frozen=True)
class Allocation:
    """How a sparsity is spread over a model: ``uniform``; ``owl``, less where inputs have outliers; ``sensitivity``,
    less where the model's output moves most. spread: how far a layer may be from the mean, up or down."""

    kind: str = "uniform"
    spread: float = 0.08

    def __post_init__(self):
        if self.kind not in ALLOCATIONS:
            raise unknown("allocation", self.kind, ALLOCATIONS)
        if not 0 < self.spread < 1:
            raise UsageError(f"spread = {self.spread}: a share between 0 and 1 is needed")

    def options(self) -> dict[str, Any]:
        """As in a recipe."""
        return {} if self == Allocation() else {"allocation": self.kind, "spread": self.spread}
