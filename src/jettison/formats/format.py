"""What a checkpoint format is, and how one is found. A format is a file of this room; which there are, and which is
taken first, is what the runtime ``jettison`` of runtimes.yaml loads.

Nothing here imports torch, whose import takes seconds: plans name formats, and do not write them.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from jettison.core.errors import JettisonError, unknown
from jettison.encodings.grid import Grid
from jettison.formats.runtimes import written_formats
from jettison.graph.anatomy import Anatomy, Linear

if TYPE_CHECKING:
    import torch

    from jettison.encodings.quantized import QuantizedWeight
    from jettison.graph.folder import ModelFolder

Reader = Callable[[str], "torch.Tensor"]  # from a tensor's name to its value


class Format(Protocol):
    """A module of this room. ``quantization`` is the section ``quantization_config`` of config.json.

    LIBRARIES: the packages that it writes with, whose versions a run records.
    """

    LIBRARIES: tuple[str, ...]

    def detects(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this section is in this format."""

    def packs(self, linear: Linear) -> bool:
        """Whether the format holds such a matrix packed. What it does not is stored dense, on its grid."""

    def refuses(self, anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
        """Why it cannot hold these grids (linear name -> grid), one line each; empty if it can."""

    def tensors(self, name: str, weight: "QuantizedWeight") -> "dict[str, torch.Tensor]":
        """What a shard holds for a packed linear called ``name``."""

    def section(self, anatomy: Anatomy, grids: Mapping[str, Grid]) -> dict[str, Any]:
        """``quantization_config`` for config.json. grids: of the packed linears."""

    def read_grids(self, source: "ModelFolder") -> dict[str, Grid]:
        """Linear name -> grid of every linear that the shards hold packed. Raises JettisonError for what cannot be
        read, and for tensors whose shapes or types are not those of their grid."""

    def read_weight(self, read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> "QuantizedWeight":
        """A packed linear, or some of its rows."""

    def problems(self, anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
        """What keeps transformers from loading such a checkpoint, in plain words."""


def find_format(name: str) -> Format:
    """Raises UsageError that lists the known ones."""
    if name not in written_formats():
        raise unknown("format", name, written_formats())
    return import_module(f"jettison.formats.{name.replace('-', '_')}")


def format_of(source: "ModelFolder") -> Format:
    """The format of a quantized folder; of one that is not quantized, the first. Raises JettisonError for a format that
    cannot be read."""
    quantization = source.quantization
    for name in written_formats():
        if not quantization or find_format(name).detects(quantization):
            return find_format(name)
    method = quantization.get("quant_method")
    raise JettisonError(
        f"{source.folder} is quantized with {method!r}; only {' and '.join(written_formats())} can be read"
    )


def choose_format(anatomy: Anatomy, grids: Mapping[str, Grid], names: Iterable[str] = ()) -> str:
    """The first of ``names`` (by default of all that are written) that can hold the grids; the very first where none
    can, for ``refuses`` to say why."""
    names = list(names) or written_formats()
    return next((name for name in names if not find_format(name).refuses(anatomy, grids)), names[0])
