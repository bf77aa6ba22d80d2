"""Merge the pruned twin of a residual block into as few layers as pay, exactly.

The layers of a twin are convolutions (a linear layer is one with a 1 x 1 kernel) with norms between them, which fold
into them. Neighbours merge into one convolution where that is cheaper, see ``cost``. A shortcut folds into a block that
became a single convolution.

Source: arXiv:2401.06426; which neighbours merge, is our reconstruction.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import gcd

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.blocks import ResidualBlock, SamePadConv2d
from jettison.graph.residual import MATRICES, NORMS
from jettison.graph.twin import Geometry, Twin, cropped_weight, remove_twin
from jettison.numerics.convolutions import Convolution, with_padding
from jettison.numerics.merging import add_shortcut, merge_chain, norm_as_scale, scale_after, scale_before

WRITTEN = 16  # multiply-adds that take as long as to write and read one activation; our estimate
Cuts = tuple[int, ...]  # before which matrices of a branch, 1 to n - 1, a new layer starts


def merge_twins(model: nn.Module, twins: Sequence[Twin]) -> list[dict]:
    """Replace every twin with fade 1 by its merged form, and every other twin by its original block, in place.

    Every twin must have run once, so that it knows the size of its inputs.
    Returns for every merged block its path, and how many layers, weights and multiply-adds it had and has.
    """
    merged = []
    for twin in twins:
        if twin.fade == 1:
            cuts = cheapest(twin)
            module = merge(twin, cuts)
            before = {
                "layers": len(twin.matrices),
                "multiply_adds": int(cost(twin, all_cuts(twin), written=0, pruned=False)),
            }
            after = {"layers": len(cuts) + 1, "multiply_adds": int(cost(twin, cuts, written=0))}
            merged.append({"path": twin.residual.path, "before": before, "after": after})
            model.set_submodule(twin.residual.path, module)
        else:
            remove_twin(model, twin)
    return merged


def merge(twin: Twin, cuts: Cuts) -> nn.Module:
    """Return the merged form of a pruned twin, in its type. It equals ``twin.pruned`` in eval mode, rounding apart.

    cuts: see ``partitions``.
    """
    residual = twin.residual
    layers = _folded(twin)
    convs = [merge_chain(layers[start:stop]) for start, stop in pairwise((0, *cuts, len(layers)))]
    convs[0] = with_padding(convs[0], twin.axes)
    shortcut = residual.shortcut
    if shortcut is not None and len(convs) == 1:
        try:
            convs[0] = add_shortcut(convs[0], _shortcut_conv(twin) if shortcut else None)
            shortcut = None
        except UsageError:  # it stays beside the convolution
            pass
    dtype = twin.matrices[0].weight.dtype
    modules = [_module(twin, conv).to(dtype) for conv in convs]
    branch = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    after = residual.pruned_after or residual.after
    if shortcut is None and after is None:
        return branch.eval()
    beside = None
    if shortcut is not None:
        beside = _conv_module(_shortcut_conv(twin)).to(dtype) if shortcut else nn.Identity()
    return ResidualBlock(branch, beside, after).eval()


def partitions(twin: Twin) -> Iterator[Cuts]:
    """Yield all ways to merge neighbours of a branch: the numbers of the matrices before which a new layer starts.

    The first layer pads for all. If it does so as TensorFlow's SAME, it contains the matrix that has this padding.
    """
    first = twin.padded if twin.residual.same_padding else 0
    for choice in product((False, True), repeat=len(twin.matrices) - 1):
        cuts = tuple(number for number, cut in enumerate(choice, 1) if cut)
        if not cuts or cuts[0] > first:
            yield cuts


def all_cuts(twin: Twin) -> Cuts:
    """Return the cuts that merge nothing."""
    return tuple(range(1, len(twin.matrices)))


def cheapest(twin: Twin) -> Cuts:
    """Return the cuts of least ``cost``; the fewest of those."""
    return min(partitions(twin), key=lambda cuts: (cost(twin, cuts), len(cuts)))


def cost(twin: Twin, cuts: Cuts, written: float = WRITTEN, pruned: bool = True) -> float:
    """Return the multiply-adds of one input with these cuts, plus ``written`` for every activation that is written.

    Sizes are those of padding that keeps the size but for the stride. The shortcut is not counted.
    pruned: with the kernels of the twin; otherwise with those of the original block.
    """
    residual, total, (height, width) = twin.residual, 0.0, twin.size
    for start, stop in pairwise((0, *cuts, len(twin.matrices))):
        members, whole = twin.matrices[start:stop], Geometry()
        for layer, kernel in zip(members, twin.kernels[start:stop], strict=True):
            if isinstance(layer, nn.Conv2d):
                kernel = kernel if pruned else layer.kernel_size
                whole = whole.then(Geometry(kernel, layer.stride, layer.dilation))
        height, width = (-(-size // stride) for size, stride in zip((height, width), whole.stride, strict=True))
        groups = gcd(*(getattr(layer, "groups", 1) for layer in members))
        (inputs, _), (_, outputs) = _channels(members[0]), _channels(members[-1])
        taps = whole.kernel[0] * whole.kernel[1]
        positions = height * width if not residual.tokens else 1
        total += positions * (inputs * outputs // groups * taps + written * outputs)
    return total


def _channels(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _folded(twin: Twin) -> list[Convolution]:
    """Return the matrices of the pruned branch as unpadded convolutions in float64, with norms and scales folded in."""
    convs: list[Convolution] = []
    before: list[tuple[torch.Tensor, torch.Tensor]] = []  # scales and shifts before the first convolution
    norms, kernels = iter(twin.norms), iter(twin.kernels)
    for layer in twin.residual.branch:
        if isinstance(layer, MATRICES):
            conv = _convolution(layer, next(kernels))
            for scale, shift in reversed(before):
                conv = scale_before(conv, scale, shift)
            before = []
            convs.append(conv)
            continue
        if isinstance(layer, NORMS):
            scale, shift = _scale_of(next(norms))
        elif isinstance(layer, nn.Parameter):
            scale, shift = layer.detach().double(), layer.new_zeros(layer.numel(), dtype=torch.float64)
        else:
            continue
        if convs:
            convs[-1] = scale_after(convs[-1], scale, shift)
        else:
            before.append((scale, shift))
    return convs


def _scale_of(norm: nn.modules.batchnorm._BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    double = lambda value: None if value is None else value.detach().double()
    return norm_as_scale(
        double(norm.running_mean), double(norm.running_var), double(norm.weight), double(norm.bias), norm.eps
    )


def _convolution(layer: nn.Module, kernel: tuple[int, int]) -> Convolution:
    """Return a layer as an unpadded convolution in float64, with the centre taps of ``kernel``."""
    weight = cropped_weight(layer, kernel).detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return Convolution(weight, bias.double())
    return Convolution(weight, bias.double(), layer.stride, layer.dilation, groups=layer.groups)


def _shortcut_conv(twin: Twin) -> Convolution:
    """Return a shortcut that is no bare input as a convolution."""
    first, *norms = twin.residual.shortcut
    conv = _convolution(first, first.kernel_size)
    for norm, _ in zip(twin.shortcut_norms, norms, strict=True):
        conv = scale_after(conv, *_scale_of(norm))
    return conv


def _module(twin: Twin, conv: Convolution) -> nn.Module:
    """Return the module of a merged convolution."""
    if twin.residual.tokens:
        out, inputs = conv.weight.shape[:2]
        module = nn.Linear(inputs, out)
        module.weight.data, module.bias.data = conv.weight[:, :, 0, 0].contiguous(), conv.bias
        return module
    return _conv_module(conv)


def _conv_module(conv: Convolution) -> nn.Module:
    """Return a module that computes a convolution, whose padding may be "same"."""
    out, inputs, *kernel = conv.weight.shape
    same = conv.padding == "same"
    left, right, top, bottom = conv.sides(1, 1) if same else conv.padding
    even = left == right and top == bottom
    shared = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    if same:
        module = SamePadConv2d(inputs * conv.groups, out, tuple(kernel), **shared)
    else:
        padding = (top, left) if even else 0
        module = nn.Conv2d(inputs * conv.groups, out, tuple(kernel), padding=padding, **shared)
    module.weight.data, module.bias.data = conv.weight.contiguous(), conv.bias
    return module if same or even else nn.Sequential(nn.ZeroPad2d(conv.padding), module)
