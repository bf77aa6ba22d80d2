"""The protocol of a checkpoint format, and functions that choose one.

A format is a module of this package. The entry ``jettison`` of runtimes.yaml lists the formats in order of preference.
This file does not import torch, whose import takes seconds: a plan names a format and does not write it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from jettison.core.errors import JettisonError, unknown
from jettison.encodings.grid import Grid
from jettison.formats.support import written_formats
from jettison.graph.anatomy import Anatomy, Linear

if TYPE_CHECKING:
    import torch

    from jettison.encodings.quantized import QuantizedWeight
    from jettison.graph.folder import ModelFolder

Reader = Callable[[str], "torch.Tensor"]  # from a tensor's name to its value


class ReadFormat(Protocol):
    """A module of this package that reads a format. ``quantization`` is ``quantization_config`` of config.json.

    SCALE: the tensor of ``stored`` that holds ``QuantizedWeight.scale`` as it is; "" if the format stores scales in
        another form, so that they cannot be trained.
    """

    SCALE: str

    def detects(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this section is in this format."""

    def stored(self, rows: int, columns: int, grid: Grid) -> "dict[str, torch.Tensor]":
        """Return the tensors that hold a weight, on the meta device, by the suffix after the linear's name and a dot.

        The first one stands for the weight where one tensor is looked up.
        """

    def read_grids(self, source: "ModelFolder") -> dict[str, Grid]:
        """Return linear name -> grid of every linear that the shards hold packed.

        Raises JettisonError for a quantization that cannot be read, and for tensors whose shapes or types are not those
        of their grid.
        """

    def read_weight(self, read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> "QuantizedWeight":
        """Read a packed linear, or some of its rows."""


class Format(ReadFormat, Protocol):
    """A module that also writes its format.

    LIBRARIES: the packages that the format is written with; a run records their versions.
    """

    LIBRARIES: tuple[str, ...]

    def packs(self, linear: Linear) -> bool:
        """Whether the format stores such a matrix packed. Others are stored dense, with their values on the grid."""

    def refuses(self, anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
        """List the reasons why the format cannot hold these grids (linear name -> grid), one line each."""

    def tensors(self, name: str, weight: "QuantizedWeight") -> "dict[str, torch.Tensor]":
        """Return the tensors of a shard, by name, for a packed linear called ``name``."""

    def section(
        self, anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = (), extra: Sequence[Linear] = ()
    ) -> dict[str, Any]:
        """Return ``quantization_config`` for config.json.

        grids: linear name -> grid of the packed linears.
        dense, extra: matrices of blocks that the model does not have (``graph.extra``); the shards hold those of
            ``dense`` dense, and those of ``extra`` packed.
        """

    def problems(self, anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
        """List the reasons why transformers cannot load such a checkpoint, as sentences."""


READ = ("gguf",)  # formats that are read and not written


def find_format(name: str) -> Format:
    """Return the format of this name, one that Jettison writes.

    Raises UsageError, which lists the known ones, and JettisonError for a module that lacks a member of ``Format``.
    """
    if name not in written_formats():
        raise unknown("format", name, written_formats())
    module = import_module(f"jettison.formats.{name.replace('-', '_')}")
    members = {name for kind in (ReadFormat, Format) for name in (*kind.__annotations__, *vars(kind)) if name[0] != "_"}
    if missing := sorted(member for member in members if not hasattr(module, member)):
        raise JettisonError(f"format {name}: {module.__name__} has no {missing[0]}, see formats/format.py")
    return module


def format_of(source: "ModelFolder") -> ReadFormat:
    """Return the format of a quantized folder, or the first format for a folder that is not quantized.

    Raises JettisonError for a format that cannot be read.
    """
    quantization = source.quantization
    if not quantization:
        return find_format(written_formats()[0])
    names = (*written_formats(), *READ)
    for name in names:
        format = find_format(name) if name not in READ else import_module(f"jettison.formats.{name.replace('-', '_')}")
        if format.detects(quantization):
            return format
    method = quantization.get("quant_method")
    raise JettisonError(f"{source.folder} is quantized with {method!r}; only {', '.join(sorted(names))} can be read")


def refusals(
    name: str,
    linears: Iterable[Linear],
    grids: Mapping[str, Grid],
    kinds: Mapping[str, Callable[[Linear, Grid], bool]],
) -> list[str]:
    """Return one line for each kind of matrix that the format ``name`` cannot hold, with their number and the first.

    kinds: what the format does not hold, in words -> whether a matrix on a grid is of that kind.
    """
    packed = [linear for linear in linears if linear.name in grids]
    refused = {what: [linear for linear in packed if of(linear, grids[linear.name])] for what, of in kinds.items()}
    return [f"{name} holds no {what} ({len(some)}, first {some[0].name})" for what, some in refused.items() if some]


def format_name(source: "ModelFolder") -> str:
    """Return the name of ``format_of`` a folder."""
    return format_of(source).__name__.rpartition(".")[2].replace("_", "-")


def choose_format(anatomy: Anatomy, grids: Mapping[str, Grid], names: Iterable[str] = ()) -> str:
    """Return the first of ``names`` that can hold the grids. If none can, return the first; its ``refuses`` says why.

    grids: linear name -> grid.
    names: formats in order of preference; empty means all that Jettison writes.
    """
    names = list(names) or written_formats()
    return next((name for name in names if not find_format(name).refuses(anatomy, grids)), names[0])
