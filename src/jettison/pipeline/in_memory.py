"""Quantize the linears of any module in memory: no folder, no journal, one pass of calibration."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.encodings.grid import WHOLE_ROW
from jettison.graph.anatomy import Linear
from jettison.graph.modules import PackedLinear
from jettison.recipe.recipe import Step
from jettison.recipe.registry import find
from jettison.statistics.stats import watch


def quantize_module(module: nn.Module, step: Step, batches: Iterable[torch.Tensor]) -> None:
    """Replace every ``nn.Linear`` of ``module`` by a packed linear that a quantize step makes.

    step: its group size is used where it divides a row; other linears get one group per row.
    batches: calibration inputs, which are run through the module if the method needs statistics.
    Raises UsageError for a module without linears, and for a method that sees more than one linear.
    """
    layers = {path: layer for path, layer in module.named_modules() if type(layer) is nn.Linear}
    method = find("quantize", step.method)
    if not layers:
        raise UsageError("there are no linear layers to quantize")
    if method.scope != "linear":
        raise UsageError(f"{method.name} needs to know the blocks of a model; this module has none")
    linears = [
        Linear(path, ("linear",), layer.out_features, layer.in_features, None, path, path)
        for path, layer in layers.items()
    ]
    stats = {}
    if method.needs:
        with torch.no_grad(), watch(module, "", linears) as watching:
            for batch in batches:
                module(batch)
        stats = watching.stats
    for linear in linears:
        layer = layers[linear.name]
        fits = step.grid.group_size == WHOLE_ROW or linear.columns % step.grid.group_size == 0
        grid = step.grid if fits else replace(step.grid, group_size=WHOLE_ROW)
        bias = None if layer.bias is None else layer.bias.detach()
        weight = method.function(layer.weight.detach().float(), grid, stats.get(linear.inputs), **step.options)
        module.set_submodule(linear.name, PackedLinear.of(weight, bias))
