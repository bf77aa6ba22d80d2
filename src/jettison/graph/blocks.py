"""Modules of our own that a description of a model may hold, beside those of torch (``graph.described``)."""

import torch
from torch import nn

from jettison.numerics.convolutions import Axis


def pad_same(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """Pad images with zeros as TensorFlow's SAME does for a convolution, see ``numerics.convolutions.Axis``.

    x: (batch, channels, height, width).
    conv: has kernel_size, stride and dilation as pairs.
    """
    axes = zip(x.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    rows, columns = (Axis.of(kernel, stride, dilation).zeros(size) for size, kernel, stride, dilation in axes)
    return nn.functional.pad(x, (*columns, *rows))  # (batch, channels, height + padding, width + padding)


class SamePadConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which depends on the size of the image. ``padding`` stays 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, self))


class ResidualBlock(nn.Module):
    """y = after(shortcut(x) + branch(x)).

    shortcut: None adds nothing, so that y = after(branch(x)); an ``nn.Identity`` adds the input itself.
    after: such as an activation; None leaves the sum as it is.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.branch(x) if self.shortcut is None else self.shortcut(x) + self.branch(x)
        return y if self.after is None else self.after(y)


class ChannelScale(nn.Module):
    """Multiply every channel of an image, (batch, channels, height, width), by a number of its own.

    weight: (channels,).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels, self.weight = channels, nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return str(self.channels)


class TexelBias(nn.Module):
    """Add a number of its own to every pixel of every channel of an image, (batch, channels, height, width).

    bias: (channels, height, width).
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.channels, self.height, self.width = channels, height, width
        self.bias = nn.Parameter(torch.zeros(channels, height, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.height}, {self.width}"


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization of tokens, (..., channels): statistics are over all dimensions but the last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


class Passed(nn.Module):
    """Stands in the place of a dropped block: returns its input."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return ``x``, whatever else the block would read."""
        return x
