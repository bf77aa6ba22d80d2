"""A quantized checkpoint as a source: its packed matrices read as dense float32 weights, or as they are packed."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from jettison.core.errors import UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats.format import ReadFormat, format_of
from jettison.formats.packed import read_grids, read_reordered
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.dense import stored_dtype
from jettison.graph.folder import ModelFolder


class DequantizedCheckpoint:
    """The tensors of a quantized folder, with one dense tensor ``NAME.weight`` in place of the parts of each matrix.

    Everything that is not packed is that of the checkpoint itself. The interface is that of ``Checkpoint``.

    grids: linear's name -> grid; reordered: the same for those of ``read_reordered``.
    """

    def __init__(
        self, packed: ModelFolder, format: ReadFormat, grids: Mapping[str, Grid], reordered: Mapping[str, Grid]
    ):
        self._packed, self._format, self._checkpoint = packed, format, packed.checkpoint
        self._reordered, grids = reordered, {**grids, **reordered}
        self._matrices: dict[str, tuple[str, Grid]] = {}  # dense name in the checkpoint -> linear, grid
        hidden: set[str] = set()
        for linear in packed.anatomy:
            if (grid := grids.get(linear.name)) is not None:
                first = next(iter(format.stored(linear.rows, linear.columns, grid)))
                stem = packed.locate(f"{linear.name}.{first}")[0].removesuffix(first)
                self._matrices[f"{stem}weight"] = (linear.name, grid)
                hidden |= {name for name in self._checkpoint if name.startswith(stem) and name != f"{stem}bias"}
        self._names = [name for name in self._checkpoint if name not in hidden] + list(self._matrices)
        self._shapes = {linear.name: (linear.rows, linear.columns) for linear in packed.anatomy}

    def __getattr__(self, name: str):
        return getattr(self._checkpoint, name)  # folder, files, content, release, sizes of files

    def __contains__(self, name: str) -> bool:
        return name in self._matrices or (name in self._checkpoint and name in self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[self._matrices[name][0]] if name in self._matrices else self._checkpoint.shape(name)

    def dtype(self, name: str) -> str:
        """Return the type that ``read`` returns."""
        return "F32" if name in self._matrices else self._checkpoint.dtype(name)

    def dequantized(self, name: str) -> bool:
        """Return whether ``read`` computes the values, so that they have no type that they are stored in."""
        return name in self._matrices

    def bytes_of(self, name: str) -> int:
        """Return the size of a tensor as ``read`` returns it, in bytes."""
        if name not in self._matrices:
            return self._checkpoint.bytes_of(name)
        rows, columns = self.shape(name)
        return 4 * rows * columns

    def read(self, name: str, index: int | slice | None = None) -> torch.Tensor:
        """Read a tensor, or only the part at ``index`` along its first dimension."""
        if name not in self._matrices:
            return self._checkpoint.read(name, index)
        linear, grid = self._matrices[name]
        rows = index if isinstance(index, slice) else slice(None)
        if linear in self._reordered:
            value = self._format.read_dense(self._packed.read, linear, grid, rows)
        else:
            value = self._format.read_weight(self._packed.read, linear, grid, rows).dequantize()
        return value[index] if isinstance(index, int) else value


class DequantizedFolder(ModelFolder):
    """A quantized folder or GGUF file, to compress again: every matrix reads dense, and those of ``grids`` packed.

    grids: linear's name -> grid.
    reordered: linear's name -> grid, of those that are packed in the source but have no form that could stay so.
    dtype: the type of the model's dense weights.
    without_adapter: leave out the LoRA adapter of the folder, if it has one.
    Raises UsageError for a folder with a LoRA adapter, which dense weights leave out; JettisonError for a quantization
    that cannot be read.
    """

    def __init__(self, name: str | Path, without_adapter: bool = False):
        super().__init__(name)
        self.without_adapter = without_adapter
        if (self.folder / ADAPTER).is_dir() and not without_adapter:
            raise UsageError(f"{name} has a LoRA adapter, which suits its quantized weights: start from the original")
        self.packed = ModelFolder(name)
        self.dtype = stored_dtype(self.packed)
        self.grids, self.format = read_grids(self.packed), format_of(self.packed)
        self.reordered = read_reordered(self.packed)
        if not self.in_file:  # the checkpoint of a GGUF file reads dense itself
            self.checkpoint: Checkpoint = DequantizedCheckpoint(self.packed, self.format, self.grids, self.reordered)

    def _reopened(self) -> "DequantizedFolder":
        return DequantizedFolder(self.folder, self.without_adapter)

    def read_packed(self, name: str, rows: slice = slice(None)) -> QuantizedWeight:
        """Read a packed linear, or some of its rows, as it is stored."""
        return self.format.read_weight(self.packed.read, name, self.grids[name], rows)


def open_source(model: str | Path | ModelFolder) -> ModelFolder:
    """Open a model to compress: a ``DequantizedFolder`` if it is quantized already, else a ``ModelFolder``.

    Raises UsageError for a quantized model that is no language model: convolutions are not dequantized.
    """
    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    if not source.quantization or isinstance(source, DequantizedFolder):
        return source
    if source.anatomy.family.domain != "text":
        method = source.quantization.get("quant_method")
        raise UsageError(f"{source.name} is already quantized ({method}): start from the original")
    return DequantizedFolder(source.name)
