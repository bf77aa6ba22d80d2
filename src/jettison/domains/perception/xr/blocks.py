"""Building blocks that several unit models share.

In all blocks, ``inside`` and ``outside`` are the numbers of input and output channels.
"""

import torch
from torch import nn

SIZES = {"full": (1.0, 1.0), "half": (1.0, 0.5), "small": (0.5, 0.5), "tiny": (0.25, 0.25)}  # width, resolution


def width_of(width: float):
    """Return a function that scales a number of channels by ``width`` and rounds it to a multiple of 8, at least 8."""
    return lambda channels: max(8, round(channels * width / 8) * 8)


def conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU):
    """Build a convolution, normalization and activation. The padding keeps the resolution, except for the stride.

    act: class of the activation; None leaves it out.
    """
    parts = [nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)]
    parts += [nn.BatchNorm2d(outside)] + ([act()] if act else [])
    return nn.Sequential(*parts)


class Sum(nn.Module):
    """A residual connection: act(path(x) + shortcut(x)). Shortcut and activation default to the identity."""

    def __init__(self, path: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None):
        super().__init__()
        self.path, self.shortcut, self.act = path, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return act(path(x) + shortcut(x))."""
        return self.act(self.path(x) + self.shortcut(x))


def basic(inside: int, outside: int, stride: int = 1) -> nn.Module:
    """Build the residual block of ResNet-18."""
    path = nn.Sequential(conv(inside, outside, 3, stride), conv(outside, outside, 3, act=None))
    same = inside == outside and stride == 1
    return Sum(path, None if same else conv(inside, outside, 1, stride, act=None), nn.ReLU())


def bottleneck(inside: int, middle: int, outside: int, stride: int = 1) -> nn.Module:
    """Build the residual block of ResNet-50 and deeper. middle: channels of its 3x3 convolution."""
    path = nn.Sequential(conv(inside, middle), conv(middle, middle, 3, stride), conv(middle, outside, act=None))
    same = inside == outside and stride == 1
    return Sum(path, None if same else conv(inside, outside, 1, stride, act=None), nn.ReLU())


class SqueezeExcite(nn.Module):
    """A squeeze-and-excite gate: scales every channel by a value that depends on the means of all channels."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(channels, middle, 1), nn.ReLU(), nn.Conv2d(middle, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale every channel of x (batch, channels, height, width) by a gate computed from the means of all."""
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()  # gate: (batch, channels, 1, 1)


def inverted(
    inside: int, expanded: int, outside: int, kernel: int, stride: int = 1, squeeze: int = 0, act: type = nn.ReLU
) -> nn.Module:
    """Build the inverted residual block of MobileNetV2, FBNet and EfficientNet.

    It expands to ``expanded`` channels, applies a depthwise convolution, and projects to ``outside`` channels. If
    ``squeeze`` is not 0, a squeeze-and-excite gate with that many channels stands before the projection.
    """
    parts = [] if expanded == inside else [conv(inside, expanded, act=act)]
    parts += [conv(expanded, expanded, kernel, stride, groups=expanded, act=act)]
    parts += [SqueezeExcite(expanded, squeeze)] if squeeze else []
    parts += [conv(expanded, outside, act=None)]
    path = nn.Sequential(*parts)
    return Sum(path) if inside == outside and stride == 1 else path


def upsample(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize x bilinearly to the height and width of ``like``."""
    return nn.functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
