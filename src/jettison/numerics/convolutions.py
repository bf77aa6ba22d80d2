"""A convolution as data: weight, bias, stride, dilation, groups, and padding that may depend on the input's size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jettison.core.errors import UsageError, shown

NONE = (0, 0, 0, 0)
Pair = tuple[int, int]  # vertical, horizontal
Sides = tuple[int, int, int, int]  # left, right, top, bottom, as in torch.nn.functional.pad


@dataclass(frozen=True)
class Same:
    """TensorFlow's SAME padding of another kernel, which ``pad_once`` moved to the front of a chain.

    kernel, stride, dilation: of the convolution whose SAME padding this is.
    extra: zeros added on top of it.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair = (1, 1)
    extra: Sides = NONE


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution as data: y = weight * pad(x) + bias. A linear is one with a 1 x 1 kernel.

    weight: (out, in / groups, kernel height, kernel width).
    bias: (out,).
    stride, dilation: vertical, horizontal.
    padding: zeros (left, right, top, bottom), or "same", TensorFlow's SAME padding, which depends on the size of the
    input where the stride is above 1; ``sides`` returns its zeros. See ``apply_tf_padding`` of transformers'
    MobileNetV2. A ``Same`` is that of another kernel.
    Raises UsageError if the shapes do not fit each other.
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Sides | Literal["same"] | Same = NONE
    groups: int = 1

    def __post_init__(self):
        shape = tuple(self.weight.shape)
        if len(shape) != 4 or 0 in shape or self.bias.shape != shape[:1]:
            raise UsageError(
                f"convolution of weight {shape} and bias {tuple(self.bias.shape)}: "
                "valid are (out, in / groups, height, width) and (out,)"
            )
        if self.groups < 1 or shape[0] % self.groups:
            raise UsageError(f"convolution with {self.groups} groups: valid are divisors of its {shape[0]} outputs")
        if min(*self.stride, *self.dilation) < 1:
            raise UsageError(f"convolution of stride {self.stride} and dilation {self.dilation}: both are at least 1")
        known = self.padding == "same" or isinstance(self.padding, Same)
        if not known and (isinstance(self.padding, str) or len(self.padding) != 4 or min(self.padding) < 0):
            raise UsageError(f'padding {shown(self.padding)}: valid are (left, right, top, bottom) and "same"')

    def __call__(self, x: Tensor) -> Tensor:
        """Pad with zeros and convolve. x: (batch, in, height, width). Returns (batch, out, height, width)."""
        x = functional.pad(x, self.sides(*x.shape[2:]))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    @property
    def kernel(self) -> Pair:
        """Height and width of the kernel, without dilation."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def channels(self) -> Pair:
        """Number of input channels and of output channels."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    @property
    def weights(self) -> int:
        """Number of values in weight and bias."""
        return self.weight.numel() + self.bias.numel()

    def sides(self, height: int, width: int) -> Sides:
        """Return the zeros (left, right, top, bottom) that are added to an input of this size."""
        vertical, horizontal = (axis.zeros(size) for axis, size in zip(axes_of(self), (height, width), strict=True))
        return (*horizontal, *vertical)

    def output_size(self, height: int, width: int) -> Pair:
        """Return height and width of the output for an input of this size."""
        left, right, top, bottom = self.sides(height, width)
        (tall, wide), (down, across) = reach(self), self.stride
        return (height + top + bottom - 1 - tall) // down + 1, (width + left + right - 1 - wide) // across + 1

    def flops(self, height: int, width: int) -> int:
        """Return the multiply-adds for one input of this size. Those with padded zeros count, the bias does not."""
        tall, wide = self.output_size(height, width)
        return self.weight.numel() * tall * wide

    def to(self, dtype: torch.dtype) -> "Convolution":
        """Return the convolution in another dtype."""
        return replace(self, weight=self.weight.to(dtype), bias=self.bias.to(dtype))

    def __str__(self) -> str:
        (ins, outs), (height, width) = self.channels, self.kernel
        return (
            f"{height} x {width} convolution ({ins} to {outs} channels, stride {self.stride}, "
            f"dilation {self.dilation}, padding {self.padding}, {self.groups} groups)"
        )


class Axis(NamedTuple):
    """Padding along one axis: a fixed number of zeros, and those of a SAME rule that depends on the input's size.

    before, after: zeros that are always added.
    rule: kernel, stride, dilation; None if nothing depends on the size. As in MobileNetV2 of transformers, the padding
        of a dilated kernel is that of the plain one times the dilation.

    Two paddings that are equal for every input size are equal as Axis: a SAME padding with stride 1 is fixed, and one
    of a longer kernel is that of a kernel of the stride's length, or one more, plus fixed zeros.
    """

    before: int
    after: int
    rule: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, kernel: int, stride: int, dilation: int, before: int = 0, after: int = 0) -> "Axis":
        """Return the SAME padding of a kernel, and fixed zeros before and after it."""
        fixed = stride == 1 or kernel == 1
        pairs = (kernel - 1) // 2 if fixed else max(kernel - stride, 0) // 2
        left = kernel - 2 * pairs
        odd = (left - 1) * dilation if fixed else 0  # an even kernel has one zero more behind than before
        rule = None if fixed else (left, stride, dilation)
        return cls(before + pairs * dilation, after + pairs * dilation + odd, rule)

    def zeros(self, size: int) -> Pair:
        """Return the zeros before and after an input of this size."""
        if self.rule is None:
            return self.before, self.after
        kernel, stride, dilation = self.rule
        total = max(kernel - (size % stride or stride), 0)
        return self.before + total // 2 * dilation, self.after + (total - total // 2) * dilation


def from_conv(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | Sides | str | Same = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Convolution:
    """Return the convolution that torch.nn.Conv2d or torch.nn.Linear computes with these arguments.

    weight: (out, in / groups, height, width), or (out, in) of a linear.
    bias: (out,); None means zeros.
    padding: as of torch.nn.Conv2d, or (left, right, top, bottom). "same" is PyTorch's with stride 1, otherwise
    TensorFlow's, which PyTorch does not have. They differ for dilated even kernels only.
    Raises UsageError if the arguments do not fit each other.
    """
    if weight.ndim == 2:
        weight = weight[:, :, None, None]  # (out, in, 1, 1)
    pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)
    stride, dilation = pair(stride), pair(dilation)
    if padding == "valid":
        padding = NONE
    elif padding == "same" and stride == (1, 1):
        (height, width), (down, across) = weight.shape[2:], dilation
        tall, wide = down * (height - 1), across * (width - 1)
        padding = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
    elif not isinstance(padding, str | Same):
        vertical, *rest = pair(padding)
        padding = (rest[0], rest[0], vertical, vertical) if len(rest) == 1 else (vertical, *rest)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return Convolution(weight, bias, stride, dilation, padding, groups)


def axes_of(conv: Convolution) -> tuple[Axis, Axis]:
    """Return the padding of a convolution, vertical and horizontal."""
    if isinstance(conv.padding, tuple | list):
        left, right, top, bottom = conv.padding
        return Axis(top, bottom), Axis(left, right)
    rule = conv.padding if isinstance(conv.padding, Same) else Same(conv.kernel, conv.stride, conv.dilation)
    left, right, top, bottom = rule.extra
    vertical, horizontal = zip(rule.kernel, rule.stride, rule.dilation, strict=True)
    return Axis.of(*vertical, top, bottom), Axis.of(*horizontal, left, right)


def with_padding(conv: Convolution, axes: Sequence[Axis]) -> Convolution:
    """Return the convolution with this padding: numbers if it is fixed, "same" if that is its own, else a Same.

    axes: vertical, horizontal.
    """
    (top, bottom, tall), (left, right, wide) = axes
    sides = (left, right, top, bottom)
    if not tall and not wide:
        return replace(conv, padding=sides)
    if axes_of(replace(conv, padding="same")) == tuple(axes):
        return replace(conv, padding="same")
    return replace(conv, padding=Same(*zip(tall or (1, 1, 1), wide or (1, 1, 1), strict=True), sides))


def pads(axis: Axis) -> bool:
    """Return whether the padding adds zeros to inputs of any size."""
    return axis != Axis(0, 0)


def reach(conv: Convolution) -> Pair:
    """Return the distance between the first and the last tap, vertical and horizontal."""
    return conv.dilation[0] * (conv.kernel[0] - 1), conv.dilation[1] * (conv.kernel[1] - 1)


def grouped(conv: Convolution, groups: int) -> Tensor:
    """Return the weight for fewer groups, with zeros for absent connections.

    groups: a divisor of the present number.
    Returns (out, in / groups, height, width) float64.
    """
    each, ratio = conv.weight.double().unflatten(0, (groups, conv.groups // groups, -1)), conv.groups // groups
    if ratio == 1:
        return conv.weight.double()
    outs, ins, height, width = each.shape[2:]
    weight = each.new_zeros(groups, ratio, outs, ratio, ins, height, width)
    weight.diagonal(dim1=1, dim2=3).copy_(each.movedim(1, -1))
    return weight.view(-1, ratio * ins, height, width)
