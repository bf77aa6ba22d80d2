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
from jettison.graph.modules import PackedConv2d, PackedEmbedding, PackedLinear, QuantizedLinear


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every packed linear. Raises JettisonError as ``Format.read_grids`` does."""
    if not source.quantization:
        return {}
    grids, anatomy = format_of(source).read_grids(source), source.anatomy
    if anatomy.tied and anatomy.head is not None and (shared := grids.get(anatomy.linears[0].name)):
        grids.setdefault(anatomy.head.name, shared)  # one matrix, stored under the embedding's name
    return grids


def read_reordered(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of the linears that can only be read dense, by the format's ``read_dense``.

    They are stored with codes, scales and groups, but the groups of a row are no runs of neighbours.
    """
    reader = getattr(format_of(source), "read_reordered", None) if source.quantization else None
    return reader(source) if reader else {}


def share_head(model: nn.Module, source: ModelFolder, dtype: torch.dtype) -> None:
    """Let the packed head of a model be its embedding too, where the source ties the two.

    An embedding of an unknown kind is left as it is.
    """
    anatomy = source.anatomy
    if not anatomy.tied or anatomy.head is None:
        return
    name, head = anatomy.linears[0].name, model.get_submodule(anatomy.head.name)
    embedding = model.get_submodule(name)
    if isinstance(head, QuantizedLinear) and PackedEmbedding.known(embedding):
        model.set_submodule(name, PackedEmbedding(embedding, head, dtype))


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
    grids = read_grids(source)
    for name, grid in grids.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            if source.anatomy.tied and PackedEmbedding.known(module):
                continue  # it shares the head's codes, see below
            weight = format.read_weight(source.read, name, grid).dequantize(dtype)
            module.weight = nn.Parameter(weight, requires_grad=False)
            continue
        bias = None if module.bias is None else source.read(f"{name}.bias").to(dtype)
        model.set_submodule(name, packed_module(source, name, grid, module, bias))
    for name, grid in read_reordered(source).items():
        value = format.read_dense(source.read, name, grid).to(dtype)
        model.get_submodule(name).weight = nn.Parameter(value, requires_grad=False)
    share_head(model, source, dtype)
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
