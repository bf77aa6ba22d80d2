"""Which units read which, what each costs, and what is really computed if some gates are closed.

A unit whose outputs no computed unit reads at this step, and that the denoiser's end does not read, is not computed
either. So closing one gate may save more than its unit: the units behind it are its cascade.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Row = Sequence[bool]  # a gate for every unit
What = Literal["output", "residual"]


@dataclass(frozen=True)
class Graph:
    """The units of a denoiser, in order of execution.

    readers: for every unit, the numbers of the units that read its outputs.
    outside: the units whose outputs are read by the rest of the denoiser.
    flops: of every unit in one call of the denoiser.
    rest: FLOPs of one call outside all units.
    """

    readers: tuple[frozenset[int], ...]
    outside: frozenset[int]
    flops: tuple[int, ...] = ()
    rest: int = 0

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.readers)

    @property
    def call(self) -> int:
        """FLOPs of one call in which everything is computed."""
        return sum(self.flops) + self.rest

    def computed(self, row: Row, reuse: What = "output") -> list[bool]:
        """Return which units are computed at a step with these gates.

        reuse: what a closed gate reuses. A reused residual is added to an input, so the unit still reads it.
        """
        wanted = self.read([opened or reuse == "residual" for opened in row])
        return [bool(opened and used) for opened, used in zip(row, wanted, strict=True)]

    def read(self, reads: Row) -> list[bool]:
        """Return the units whose outputs are needed at a step.

        reads: for every unit, whether it reads its inputs if its own outputs are needed.
        """
        wanted = [False] * self.units
        for unit in reversed(range(self.units)):
            wanted[unit] = unit in self.outside or any(
                wanted[reader] and reads[reader] for reader in self.readers[unit]
            )
        return wanted

    def cost(self, rows: Sequence[Row], reuse: What = "output") -> int:
        """Return the FLOPs of a run: a row of gates for every call of the denoiser."""
        return sum(self.row_cost(row, reuse) for row in rows)

    def row_cost(self, row: Row, reuse: What = "output") -> int:
        """Return the FLOPs of one call with these gates."""
        computed = self.computed(row, reuse)
        return self.rest + sum(flops for flops, used in zip(self.flops, computed, strict=True) if used)

    def pruned(self, rows: Sequence[Row], reuse: What = "output") -> float:
        """Return the share of a run's FLOPs that closed gates save."""
        return 1 - self.cost(rows, reuse) / (len(rows) * self.call)

    @cached_property
    def _all_open(self) -> tuple[bool, ...]:
        return (True,) * self.units

    def shares(self, reuse: What = "output") -> list[float]:
        """Return what closing each unit alone saves, with its cascade, as a share of the FLOPs of all units."""
        shares = []
        for unit in range(self.units):
            row = [number != unit for number in range(self.units)]
            shares.append((self.row_cost(self._all_open, reuse) - self.row_cost(row, reuse)) / sum(self.flops))
        return shares
