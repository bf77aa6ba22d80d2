"""A model's linears in fewer bits, for its own draft: made once from the weights at hand, kept in the cache folder."""

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
from jettison.graph.modules import Adapted, PackedLinear, QuantizedLinear, dense_weight
from jettison.kernels.tiles import LAYOUT
from jettison.recipe.registry import default_method, find
from jettison.runtime.speculative.draft import View


def view_linears(source: ModelFolder, model: nn.Module, view: View) -> dict[str, nn.Module]:
    """Path of a linear -> what stands in for it, tiled for the kernels. Rounded to nearest, the range of each group
    searched; what has no more bits than the view stays.

    Raises UsageError where nothing has more bits.
    """
    linears = [
        linear for linear in source.anatomy if set(linear.roles) & set(view.roles) and _more(model, linear, view)
    ]
    if not linears:
        raise UsageError(f"a draft with {view}: no linear of {source.name} has more bits")
    key = digest(source.fingerprint(), asdict(view), str(model.dtype), LAYOUT)
    path = cache_folder() / "views" / f"{key}.safetensors"
    sizes = {linear.name: (linear.rows, linear.columns, view_grid(linear, view)) for linear in linears}
    if (found := read_linears(path, key, sizes)) is not None:
        return found
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
            say(f"note: the draft's weights are made again each time: {error}")
    return stand_ins


def _base(model: nn.Module, linear: Linear) -> nn.Module:
    module = model.get_submodule(linear.name)
    return module.base if isinstance(module, Adapted) else module


def _more(model: nn.Module, linear: Linear, view: View) -> bool:
    module = _base(model, linear)
    return not isinstance(module, nn.Embedding) and (
        not isinstance(module, QuantizedLinear) or module.grid.bits > view.bits
    )


def view_grid(linear: Linear, view: View) -> Grid:
    return UniformGrid(view.bits, view.group_size if linear.columns % view.group_size == 0 else WHOLE_ROW)


def rounded(weight: torch.Tensor, grid: Grid) -> QuantizedWeight:
    return find("quantize", default_method("quantize_at_once")).function(weight, grid, None)


def _together(linears: dict[str, nn.Module]) -> nn.Module:
    """One module that has each linear at its path."""
    whole = nn.Module()
    for path, linear in linears.items():
        at = whole
        for name in path.split(".")[:-1]:
            if not hasattr(at, name):
                at.add_module(name, nn.Module())
            at = getattr(at, name)
        at.add_module(path.rpartition(".")[2], linear)
    return whole
