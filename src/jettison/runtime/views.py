"""Views: a model's linears rounded to fewer bits, as a draft model. Made once, and kept in the cache folder."""

from dataclasses import asdict

import torch
from torch import nn

from jettison.core.caches import cache_folder, cache_is_kept
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import digest
from jettison.core.progress import bar, say
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.formats.tiled import read_linears, write_tiled
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import Adapted, PackedEmbedding, PackedLinear, QuantizedLinear, dense_weight
from jettison.kernels.tiles import LAYOUT
from jettison.recipe.registry import default_method, find
from jettison.runtime.speculative.draft import View


def view_linears(source: ModelFolder, model: nn.Module, view: View) -> dict[str, nn.Module]:
    """Round linears of the view's roles to its bits, tiled for the kernels; those with no more bits are left out.

    Weights are rounded to nearest, with a search for the range of every group.
    Returns path of a linear -> module that replaces it in the draft model.
    Raises UsageError if no linear has more bits than the view.
    """
    linears = [
        linear
        for linear in source.anatomy
        if set(linear.roles) & set(view.roles) and _has_more_bits(model, linear, view)
    ]
    if not linears:
        raise UsageError(f"a draft with {view}: no linear of {source.name} has more bits")
    key = digest(source.fingerprint(), asdict(view), str(model.dtype), LAYOUT)
    path = cache_folder() / "views" / f"{key}.safetensors"
    sizes = {linear.name: (linear.rows, linear.columns, view_grid(linear, view)) for linear in linears}
    if (cached := read_linears(path, key, sizes)) is not None:
        return cached
    stand_ins = {}
    with bar("draft", len(linears)) as progress:
        for linear in linears:
            base = _base(model, linear)
            packed = PackedLinear.of(rounded(dense_weight(base, linear), view_grid(linear, view)), base.bias)
            stand_ins[linear.name] = packed.tiled() or packed
            progress.advance(note=linear.name)
    if cache_is_kept():
        try:
            write_tiled(_together(stand_ins), path, key)
        except JettisonError as error:
            say(f"note: the draft's weights cannot be cached and are computed again next time: {error}")
    return stand_ins


def _base(model: nn.Module, linear: Linear) -> nn.Module:
    module = model.get_submodule(linear.name)
    return module.base if isinstance(module, Adapted) else module


def _has_more_bits(model: nn.Module, linear: Linear, view: View) -> bool:
    module = _base(model, linear)
    return not isinstance(module, nn.Embedding | PackedEmbedding) and (
        not isinstance(module, QuantizedLinear) or module.grid.bits > view.bits
    )


def view_grid(linear: Linear, view: View) -> Grid:
    """Return the grid of a linear in a view; whole rows are one group if the group size does not divide them."""
    return UniformGrid(view.bits, view.group_size if linear.columns % view.group_size == 0 else WHOLE_ROW)


def rounded(weight: torch.Tensor, grid: Grid) -> QuantizedWeight:
    """Quantize a weight (rows, columns) without calibration, by the default method that needs none."""
    return find("quantize", default_method("quantize_at_once")).function(weight, grid, None)


def _together(linears: dict[str, nn.Module]) -> nn.Module:
    """Return one module that holds every linear at its path, as ``write_tiled`` needs."""
    whole = nn.Module()
    for path, linear in linears.items():
        parent = whole
        for name in path.split(".")[:-1]:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        parent.add_module(path.rpartition(".")[2], linear)
    return whole
