"""Reads folders with packed weights, in any format: their grids, and their models with the weights still packed."""

from pathlib import Path

import torch
from torch import nn

from jettison.core.progress import waiting
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import empty_parts
from jettison.formats.format import format_of
from jettison.graph.dense import with_defaults
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PackedConv2d, PackedLinear


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every packed linear. Raises JettisonError as ``Format.read_grids`` does."""
    return format_of(source).read_grids(source) if source.quantization else {}


def packed_module(
    source: ModelFolder, name: str, grid: Grid, module: nn.Module, bias: torch.Tensor | None = None
) -> PackedLinear | PackedConv2d:
    """Return a module that holds a quantized matrix of a folder, packed as it is stored.

    name: of the matrix in the folder.
    module: the linear or convolution that the new module will replace.
    """
    format, (rows, columns) = format_of(source), module.weight.flatten(1).shape
    names = empty_parts(rows, columns, grid)
    if names.keys() == format.stored(rows, columns, grid).keys():  # the file holds what the module does
        parts = {part: source.read(f"{name}.{part}") for part in names}
    else:
        parts = format.read_weight(source.read, name, grid).parts()
    if isinstance(module, nn.Conv2d):
        return PackedConv2d(grid, module, **parts, bias=bias)
    return PackedLinear(grid, columns, **parts, bias=bias)


@waiting("loading the model")
def load_packed(source: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """Load the model of a folder: quantized linears as ``PackedLinear``, quantized convolutions as ``PackedConv2d``,
    and everything else in ``dtype``."""
    model, format = source.new_skeleton(), format_of(source)
    for name, grid in read_grids(source).items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):  # its rows are looked up and not multiplied, so it stays dense
            weight = format.read_weight(source.read, name, grid).dequantize(dtype)
            module.weight = nn.Parameter(weight, requires_grad=False)
            continue
        bias = None if module.bias is None else source.read(f"{name}.bias").to(dtype)
        model.set_submodule(name, packed_module(source, name, grid, module, bias))
    source.fill(model, dtype=dtype)
    return with_defaults(model, source, dtype)


class UnpackedFolder(ModelFolder):
    """A folder whose packed linears read as dense float32 weights, for code that walks a model block by block."""

    def __init__(self, name: str | Path):
        super().__init__(name)
        self._grids = read_grids(ModelFolder(name))

    def locate(self, parameter: str) -> tuple[str, int | None, str]:
        """As ``ModelFolder.locate``; the weight of a packed linear is located by its first stored tensor."""
        base = parameter.removesuffix(".weight")
        if base not in self._grids or base == parameter:
            return super().locate(parameter)
        linear = next(linear for linear in self.anatomy if linear.name == base)
        first = next(iter(format_of(self).stored(linear.rows, linear.columns, self._grids[base])))
        return super().locate(f"{base}.{first}")

    def read(self, parameter: str) -> torch.Tensor:
        """As ``ModelFolder.read``; the weight of a packed linear is unpacked to float32."""
        base = parameter.removesuffix(".weight")
        if base in self._grids and base != parameter:
            return format_of(self).read_weight(super().read, base, self._grids[base]).dequantize()
        return super().read(parameter)
