"""Pruned twins of residual blocks: blocks without activations inside, with norms that can be folded.

- A ``Twin`` stands in a block's place and mixes the block with its pruned twin: y = (1 - fade) · block + fade · twin.
  The two share their convolutions and linear layers; each has norms of its own.
- The twin pads its input once, before its first layer, so that it equals one convolution also at the borders.
- ``graph.merge`` makes that convolution.

Source: arXiv:2401.06426; what the twin of each kind of block is, is our reconstruction.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from math import gcd

import torch
from torch import nn
from torch.nn.functional import conv2d, linear, pad
from torch.nn.modules.batchnorm import _BatchNorm

from jettison.core.errors import UsageError
from jettison.graph.blocks import TokenBatchNorm
from jettison.graph.residual import MATRICES, NORMS, Residual, is_spatial
from jettison.numerics.convolutions import Convolution, axes_of, from_conv
from jettison.numerics.merging import crop, pad_once

MOMENTUM = 0.1  # of the running statistics of the twin's norms
Pair = tuple[int, int]  # vertical, horizontal
Padding = tuple[int, int, int, int]  # left, right, top, bottom


@dataclass(frozen=True)
class Geometry:
    """The kernel, stride and dilation of a convolution, each (vertical, horizontal)."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def reach(self) -> int:
        """The distance between the first and the last tap, plus one; of the longer axis."""
        return max((kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True))

    def then(self, other: "Geometry") -> "Geometry":
        """Return the geometry of this convolution followed by another one, as ``numerics.merging.compose`` merges."""
        axes = []
        for axis in (0, 1):
            near = self.dilation[axis] if self.kernel[axis] > 1 else 0
            far = self.stride[axis] * other.dilation[axis] if other.kernel[axis] > 1 else 0
            dilation = gcd(near, far) or 1
            last = near * (self.kernel[axis] - 1) + far * (other.kernel[axis] - 1)
            axes.append((last // dilation + 1, self.stride[axis] * other.stride[axis], dilation))
        return Geometry(*zip(*axes, strict=True))


class Twin(nn.Module):
    """A residual block mixed with its pruned twin. ``fade``: the share of the twin, 0 to 1; a tensor learns.

    original: the module that the block was.
    residual: its parts, which are modules of ``original``.
    kernel: the largest kernel of the merged convolution: the layers beside the one with the largest kernel shrink to
        their centre tap until they reach no further. That layer keeps its kernel. 0: no limit.
    Raises UsageError if a layer would shrink that has no centre tap, or whose padding is smaller than what it loses.
    """

    def __init__(self, original: nn.Module, residual: Residual, kernel: int = 0):
        super().__init__()
        self.original, self.residual, self.fade = original, residual, 0.0
        self.norms = nn.ModuleList(_foldable(layer, residual) for layer in residual.branch if isinstance(layer, NORMS))
        of_shortcut = [layer for layer in residual.shortcut or () if isinstance(layer, NORMS)]
        self.shortcut_norms = nn.ModuleList(_foldable(layer, residual) for layer in of_shortcut)
        self.matrices = [layer for layer in residual.branch if isinstance(layer, MATRICES)]
        self.kernels = _kept_kernels([_geometry(layer) for layer in self.matrices], kernel)
        self.size = (1, 1)  # height and width of the last input
        try:
            self.axes = axes_of(pad_once(_chain(residual, self.matrices, self.kernels))[0])  # how the input is padded
        except UsageError as error:
            raise UsageError(f"block {residual.path}, at kernel = {kernel}: {error}; give kernel: 0") from None

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return the mixture. With fade 0 this is the original block and nothing else."""
        fixed = not torch.is_tensor(self.fade)
        if fixed and self.fade == 0:
            return self.original(x, *args, **kwargs)
        pruned = self.pruned(x)
        if fixed and self.fade == 1:
            return pruned
        whole = self.original(x, *args, **kwargs)
        return whole + self.fade * (pruned - whole)

    def pruned(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the pruned twin."""
        residual = self.residual
        self.size = tuple(x.shape[-2:]) if not residual.tokens else (1, 1)
        y = x if residual.tokens else pad(x, self.padding())
        norms, kernels = iter(self.norms), iter(self.kernels)
        for layer in residual.branch:
            if isinstance(layer, MATRICES):
                y = self._multiply(layer, y, next(kernels))
            elif isinstance(layer, NORMS):
                y = next(norms)(y)
            elif isinstance(layer, nn.Parameter):
                y = y * (layer if residual.tokens else layer.view(-1, 1, 1))
        if residual.shortcut is not None:
            norms = iter(self.shortcut_norms)
            for layer in residual.shortcut:
                x = next(norms)(x) if isinstance(layer, NORMS) else layer(x)
            y = y + x
        after = residual.pruned_after or residual.after
        return y if after is None else after(y)

    @property
    def padded(self) -> int:
        """The number of the matrix whose padding is that of the block, if it pads as TensorFlow's SAME."""
        return next((number for number, layer in enumerate(self.matrices) if is_spatial(layer)), 0)

    def padding(self) -> Padding:
        """Return how the twin pads its input: as much as all convolutions of the block pad together."""
        rows, columns = (axis.zeros(size) for axis, size in zip(self.axes, self.size, strict=True))
        return (*columns, *rows)

    def _multiply(self, layer: nn.Module, x: torch.Tensor, kernel: Pair) -> torch.Tensor:
        if self.residual.tokens:
            return linear(x, layer.weight, layer.bias)
        weight = cropped_weight(layer, kernel)
        if isinstance(layer, nn.Linear):
            return conv2d(x, weight, layer.bias)
        return conv2d(x, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def install_twins(model: nn.Module, residuals: Iterable[Residual], kernel: int | None = None) -> list[Twin]:
    """Put a twin in the place of every residual block, in place. Returns the twins, with fade 0.

    kernel: see ``Twin``; None limits it to the largest kernel of the block.
    """
    twins = []
    for residual in residuals:
        original = model.get_submodule(residual.path)
        training = original.training
        if residual.absorbs:
            norm = model.get_submodule(residual.absorbs)
            original = nn.Sequential(norm, original)
            model.set_submodule(residual.absorbs, nn.Identity())
        largest = max(max(_geometry(layer).kernel) for layer in residual.branch if isinstance(layer, MATRICES))
        twins.append(Twin(original, residual, largest if kernel is None else kernel).train(training))
        model.set_submodule(residual.path, twins[-1])
    return twins


def remove_twin(model: nn.Module, twin: Twin) -> None:
    """Put the original block back in the place of its twin, in place."""
    original, residual = twin.original, twin.residual
    if residual.absorbs:
        norm, original = original
        model.set_submodule(residual.absorbs, norm)
    model.set_submodule(residual.path, original)


def set_fades(twins: Iterable[Twin], fades: Iterable[float]) -> None:
    """Set the share of the twin in every block."""
    for twin, fade in zip(twins, fades, strict=True):
        twin.fade = float(fade)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalizations of a model that have running statistics."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@contextmanager
def recalibrating(model: nn.Module) -> Iterator[None]:
    """Let batch normalizations, and nothing else, learn: what is run in this context becomes their statistics."""
    norms, training = batch_norms(model), model.training
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not int(norm.num_batches_tracked):  # its block did not run
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
        model.train(training)


def cropped_weight(layer: nn.Module, kernel: Pair) -> torch.Tensor:
    """Return the centre taps of a layer's weight, (out, in / groups, kernel height, kernel width)."""
    weight = layer.weight if layer.weight.dim() == 4 else layer.weight[..., None, None]
    top, left = ((size - kept) // 2 for size, kept in zip(weight.shape[2:], kernel, strict=True))
    return weight[..., top : top + kernel[0], left : left + kernel[1]]


def _foldable(norm: nn.Module, residual: Residual) -> nn.Module:
    """Return a batch normalization that starts with the scale and shift of ``norm``, and with its statistics if any."""
    batch = isinstance(norm, _BatchNorm)
    if batch:
        channels = norm.num_features
    else:
        channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.normalized_shape[-1]
    fresh = (TokenBatchNorm if residual.tokens else nn.BatchNorm2d)(channels, eps=norm.eps, momentum=MOMENTUM)
    like = next(norm.parameters(), next(residual.branch_parameters(), fresh.weight))
    fresh = fresh.to(like.device, like.dtype)
    known = dict(norm.named_parameters()) | dict(norm.named_buffers() if batch else ())
    with torch.no_grad():
        for name, value in known.items():
            fresh.get_buffer(name).copy_(value) if name in fresh._buffers else fresh.get_parameter(name).copy_(value)
    return fresh


def _geometry(layer: nn.Module) -> Geometry:
    return Geometry(layer.kernel_size, layer.stride, layer.dilation) if isinstance(layer, nn.Conv2d) else Geometry()


def _chain(residual: Residual, matrices: Sequence[nn.Module], kernels: Sequence[Pair]) -> list[Convolution]:
    """Return the matrices of a branch as convolutions with the kernels that they keep, and without their biases."""
    chain = []
    for layer, kernel in zip(matrices, kernels, strict=True):
        conv = from_conv(layer.weight.detach())
        if isinstance(layer, nn.Conv2d):
            padding = "same" if residual.same_padding and is_spatial(layer) else layer.padding
            conv = from_conv(layer.weight.detach(), None, layer.stride, padding, layer.dilation, layer.groups)
        chain.append(conv if conv.kernel == kernel else crop(conv, kernel))
    return chain


def _kept_kernels(geometries: Sequence[Geometry], limit: int) -> list[Pair]:
    """Return the kernel that every layer keeps, so that all together reach no further than ``limit``.

    The first of the largest kernels stays; the others shrink to a single tap, the last one first.
    """
    kept = [geometry.kernel for geometry in geometries]
    whole = lambda: reduce(
        Geometry.then, (replace(one, kernel=kernel) for one, kernel in zip(geometries, kept, strict=True))
    )
    largest = max(range(len(kept)), key=lambda index: max(kept[index]))
    for index in reversed(range(len(kept))):
        if limit and whole().reach > limit and index != largest:
            if any(size % 2 == 0 for size in kept[index]):
                raise UsageError(f"a kernel of {kept[index]} taps has no centre, so it cannot shrink; give kernel: 0")
            kept[index] = (1, 1)
    return kept
