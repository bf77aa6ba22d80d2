"""Merge linear layers exactly: a chain of convolutions, its norms and its shortcut become one convolution.

- A convolution is data here: weight, bias, stride, dilation, padding, groups. Nothing is trained or measured.
- Every function either returns a convolution with the same outputs, borders included, or raises a UsageError. Only
  ``pad_once`` changes outputs, at the borders, and only ``crop`` drops weights.
- Arithmetic is in float64. The result has the dtype of the inputs.

Source: the subnet merging of UPDP (arXiv:2401.06426). The paper merges blocks by reparameterization; grouped
composition, dilation, TensorFlow's padding and the rules of what is exact at borders are our reconstruction.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.numerics.convolutions import (
    NONE,
    Axis,
    Convolution,
    Pair,
    axes_of,
    grouped,
    pads,
    reach,
    with_padding,
)
from jettison.numerics.convolutions import Same as Same
from jettison.numerics.convolutions import from_conv as from_conv


def norm_as_scale(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return an eval-mode batch norm as y = scale · x + shift.

    mean, var: running statistics (channels,). weight, bias: (channels,), or None for one and zero.
    Returns scale and shift, (channels,) float64; the functions that fold them round to the dtype of a convolution.
    """
    scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    return scale, (0 if bias is None else bias.double()) - mean.double() * scale


def scale_after(conv: Convolution, scale: Tensor, shift: Tensor) -> Convolution:
    """Fold y · scale + shift behind a convolution into it: a batch norm, or a layer scale.

    scale, shift: (out,), or single numbers ().
    Raises UsageError if they have another shape.
    """
    scale, shift = (_per_channel(values, conv.channels[1], conv, "output") for values in (scale, shift))
    weight = conv.weight.double() * scale[:, None, None, None]
    return _rebuilt(conv, weight, conv.bias.double() * scale + shift)


def scale_before(conv: Convolution, scale: Tensor, shift: Tensor) -> Convolution:
    """Fold scale · x + shift in front of a convolution into it: conv(scale · x + shift).

    scale, shift: (in,), or single numbers ().
    Raises UsageError if they have another shape, or if the convolution pads and ``shift`` is not zero: the padded
    zeros come behind the norm, so that it does not shift them.
    """
    scale, shift = (_per_channel(values, conv.channels[0], conv, "input") for values in (scale, shift))
    if shift.any() and any(map(pads, axes_of(conv))):
        raise UsageError(
            f"cannot fold a norm that shifts by up to {float(shift.abs().max()):.3g} into the {conv} behind it, "
            "which pads with zeros that are not shifted; pad the input once, before the norm, and the convolution not"
        )
    by_group = lambda values: values.view(conv.groups, 1, -1, 1, 1)
    weight = conv.weight.double().unflatten(0, (conv.groups, -1))  # (groups, out / groups, in / groups, h, w)
    bias = conv.bias.double() + (weight * by_group(shift)).sum((2, 3, 4)).flatten()
    return _rebuilt(conv, (weight * by_group(scale)).flatten(0, 1), bias)


def compose(first: Convolution, second: Convolution) -> Convolution:
    """Return second(first(x)) as one convolution, for inputs of every size.

    The kernel is k + stride · (l - 1) long without dilation, strides multiply, and the padding is that of ``first``.
    The result has the greatest common divisor of both numbers of groups, the most with which it is exact: depthwise
    with depthwise stays depthwise, depthwise with dense becomes dense. Its dilation is the largest that is exact.

    Raises UsageError if the channels do not match, or if ``second`` pads. It may only pad along axes on which the
    kernel of ``first`` has length 1, and only if the bias of ``first`` is zero, because it pads with zeros instead of
    with what ``first`` makes of zeros. See ``pad_once``.
    """
    if first.channels[1] != second.channels[0]:
        raise UsageError(f"cannot merge a {first} with a {second}: the channels between them must be equal")
    if any(map(pads, axes_of(second))):
        wide = any(pads(axis) and kernel > 1 for axis, kernel in zip(axes_of(second), first.kernel, strict=True))
        if wide or first.bias.any():
            reason = "has a kernel along a padded axis" if wide else "has a bias"
            raise UsageError(
                f"cannot merge a {first} with a {second}: the second pads and the first {reason}, so that borders "
                "would differ; move the padding to the first with pad_once"
            )
        first, second = pad_once([first, second])
    # Tap a of the first and tap b of the second read position near · a + far · b.
    near = [dilation if kernel > 1 else 0 for dilation, kernel in zip(first.dilation, first.kernel, strict=True)]
    far = [
        stride * dilation if kernel > 1 else 0
        for stride, dilation, kernel in zip(first.stride, second.dilation, second.kernel, strict=True)
    ]
    common = tuple(gcd(*steps) or 1 for steps in zip(near, far, strict=True))
    near, far = ([max(step // by, 1) for step, by in zip(steps, common, strict=True)] for steps in (near, far))
    groups = gcd(first.groups, second.groups)
    # The side with more groups stays as it is; only the other one is expanded, to the groups of the result.
    if first.groups >= second.groups:
        rows = grouped(second, groups).unflatten(0, (groups, -1))  # (groups, out / groups, mid / groups, h, w)
        rows = rows.transpose(1, 2).flatten(0, 1).transpose(0, 1)  # (out / groups, mid, h, w)
        weight = functional.conv_transpose2d(
            rows, first.weight.double(), stride=far, dilation=near, groups=first.groups
        )  # (out / groups, in, h, w)
        weight = weight.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)  # (out, in / groups, h, w)
    else:
        rows = grouped(first, groups).transpose(0, 1)  # (in / groups, mid, h, w)
        taps = second.weight.double().unflatten(0, (second.groups, -1)).transpose(1, 2).flatten(0, 1)  # (mid, out / g2)
        weight = functional.conv_transpose2d(
            rows, taps, stride=near, dilation=far, groups=second.groups
        )  # (in / groups, out, h, w)
        weight = weight.transpose(0, 1)
    total = second.weight.double().sum((2, 3)).unflatten(0, (second.groups, -1))  # (g2, out / g2, mid / g2)
    bias = second.bias.double() + (total @ first.bias.double().view(second.groups, -1, 1)).flatten()
    stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
    dtype = torch.promote_types(first.weight.dtype, second.weight.dtype)
    merged = Convolution(weight.to(dtype).contiguous(), bias.to(dtype), stride, common, groups=groups)
    return with_padding(merged, axes_of(first))


def pad_once(convs: Sequence[Convolution]) -> list[Convolution]:
    """Move all padding of a chain to its first convolution, so that ``compose`` can merge it.

    The first pads p1 + s1 · p2 + s1 · s2 · p3 ..., the others nothing. The size of the output stays the same for every
    size of the input, but values at the borders change: train the chain with this padding.

    Raises UsageError for an empty chain, or if a "same" padding that depends on the input's size stands behind a
    stride, or behind convolutions that change the size by anything but a multiple of its own stride: then no fixed
    rule of the chain's input gives its zeros. A "same" at stride 1 is a fixed padding and never a problem.
    """
    if not convs:
        raise UsageError("cannot pad an empty chain of convolutions: valid is at least one")
    axes = []
    for number in range(2):
        before, after, rule, stride, grown = 0, 0, None, 1, 0
        for conv in convs:
            axis = axes_of(conv)[number]
            if axis.rule and (stride > 1 or grown % axis.rule[1]):
                cause = f"a stride of {stride}" if stride > 1 else f"convolutions that change the size by {grown}"
                raise UsageError(
                    f"cannot move the padding of the {conv} to the front of its chain: it depends on the input's size "
                    f"and stands behind {cause}; give it fixed padding, or merge the chain up to it"
                )
            before, after, rule = before + stride * axis.before, after + stride * axis.after, axis.rule or rule
            grown += axis.before + axis.after - reach(conv)[number]
            stride *= conv.stride[number]
        axes.append(Axis(before, after, rule))
    return [with_padding(convs[0], axes), *(replace(conv, padding=NONE) for conv in convs[1:])]


def crop(conv: Convolution, kernel: Pair) -> Convolution:
    """Keep the centre taps of a kernel. Every tap that stays reads the same position, and the output keeps its size.

    kernel: height and width to keep.
    Raises UsageError if the difference is odd or negative, or if the padding is smaller than the taps that go.
    """
    cut = [old - new for old, new in zip(conv.kernel, kernel, strict=True)]
    if any(taps < 0 or taps % 2 for taps in cut) or min(kernel) < 1:
        raise UsageError(
            f"cannot crop a {conv} to {kernel[0]} x {kernel[1]}: valid are kernels smaller by an even number"
        )
    (tall, wide), (height, width) = (taps // 2 for taps in cut), conv.kernel
    shrunk = [
        Axis(axis.before - taps * dilation, axis.after - taps * dilation, axis.rule)
        for axis, taps, dilation in zip(axes_of(conv), (tall, wide), conv.dilation, strict=True)
    ]
    if any(min(axis.before, axis.after) < 0 for axis in shrunk):
        raise UsageError(
            f"cannot crop a {conv} to {kernel[0]} x {kernel[1]}: its padding must cover the taps that go on each side"
        )
    weight = conv.weight[:, :, tall : height - tall, wide : width - wide].contiguous()
    return with_padding(replace(conv, weight=weight, padding=NONE), shrunk)


def add_shortcut(conv: Convolution, shortcut: Convolution | None) -> Convolution:
    """Fold a shortcut: return conv(x) + shortcut(x) as one convolution with the kernel of ``conv``.

    shortcut: None means x itself (a Dirac kernel). The result has the groups that both have in common.
    Raises UsageError with the reason if channels, strides or output sizes differ, or if a tap of the shortcut reads a
    position that no tap of ``conv`` reads.
    """
    ins = conv.channels[0]
    other = shortcut or Convolution(conv.weight.new_ones(ins, 1, 1, 1), conv.bias.new_zeros(ins), groups=ins)

    def refusal(reason: str) -> UsageError:
        return UsageError(
            f"shortcut that cannot fold: {other if shortcut else 'the input itself'} into {conv}: {reason}"
        )

    if other.channels != conv.channels:
        raise refusal(f"it has {other.channels[0]} to {other.channels[1]} channels; both must have the same")
    if other.stride != conv.stride:
        raise refusal(f"its stride is {other.stride}; both must have the same")
    rows = []  # of the kernel of conv, then columns: the taps that read what the taps of the shortcut read
    for number, (mine, its) in enumerate(zip(axes_of(conv), axes_of(other), strict=True)):
        if mine.rule != its.rule:
            raise refusal('one "same" padding depends on the size of the input; both must pad alike')
        sizes = [sum(axis[:2]) - reach(of)[number] for axis, of in ((mine, conv), (its, other))]
        if sizes[0] != sizes[1]:
            raise refusal(f"outputs of it are {sizes[1] - sizes[0]} longer before strides; sizes must be equal")
        starts = [mine.before - its.before + other.dilation[number] * tap for tap in range(other.kernel[number])]
        if any(at % conv.dilation[number] or not 0 <= at <= reach(conv)[number] for at in starts):
            raise refusal("one of its taps reads a position between or beside the taps of the kernel")
        rows.append(torch.tensor([at // conv.dilation[number] for at in starts], device=conv.weight.device))
    groups = gcd(conv.groups, other.groups)
    weight = grouped(conv, groups).clone()
    weight[:, :, rows[0][:, None], rows[1]] += grouped(other, groups)
    return replace(_rebuilt(conv, weight, conv.bias.double() + other.bias.double()), groups=groups)


def merge_chain(convs: Sequence[Convolution]) -> Convolution:
    """Merge a chain into one convolution, rounding once at the end.

    convs: in the order in which they run; pad them once before.
    Raises UsageError as ``compose`` does, and for an empty chain.
    """
    if not convs:
        raise UsageError("cannot merge an empty chain of convolutions: valid is at least one")
    chain = [conv.to(torch.float64) for conv in convs]
    while len(chain) > 1:  # the pair with the smallest result first: a wide MLP goes before a depthwise layer joins
        at = min(range(len(chain) - 1), key=lambda number: _merged_weights(*chain[number : number + 2]))
        chain[at : at + 2] = [compose(*chain[at : at + 2])]
    return chain[0].to(reduce(torch.promote_types, (conv.weight.dtype for conv in convs)))


def _merged_weights(first: Convolution, second: Convolution) -> int:
    """Return the number of weights of the composition, without what its dilation saves."""
    (down, across), (tall, wide), (height, width) = first.stride, reach(first), reach(second)
    taps = (tall + down * height + 1) * (wide + across * width + 1)
    return first.channels[0] * second.channels[1] * taps // gcd(first.groups, second.groups)


def _per_channel(values: Tensor, channels: int, conv: Convolution, side: str) -> Tensor:
    if values.ndim and values.shape != (channels,):
        raise UsageError(
            f"scale or shift of shape {tuple(values.shape)} for the {side}s of {conv}: valid is ({channels},)"
        )
    return values.double().expand(channels)


def _rebuilt(conv: Convolution, weight: Tensor, bias: Tensor) -> Convolution:
    """The convolution with other values, rounded to its dtype."""
    return replace(conv, weight=weight.to(conv.weight.dtype), bias=bias.to(conv.bias.dtype))
