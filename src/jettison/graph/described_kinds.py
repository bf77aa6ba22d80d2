"""The kinds of modules that a description may hold: their classes, and their options with limits.

A kind is a row of ``KINDS``. Its options are the arguments of its class, and attributes of the same names. ``bias``
says whether there is one. ``modules``, ``branch``, ``shortcut`` and ``after`` hold descriptions of parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from jettison.core.validation import Fields
from jettison.graph.blocks import ChannelScale, ResidualBlock, SamePadConv2d, TexelBias, TokenBatchNorm

SIZE, LENGTH, DIMENSIONS = 1 << 24, 1 << 12, 8  # the largest number of channels, side of a kernel, and dimensions
pair = lambda value: [value, value] if type(value) is int else value
Size = Annotated[int, Field(ge=1, le=SIZE, description=f"a whole number from 1 to {SIZE} is needed")]
Side = Annotated[int, Field(ge=1, le=LENGTH)]
Zeros = Annotated[int, Field(ge=0, le=LENGTH)]
Sides = Annotated[
    list[Side],
    Field(min_length=2, max_length=2, description=f"two whole numbers from 1 to {LENGTH} are needed"),
    BeforeValidator(pair),
]
Padding = Annotated[
    list[Zeros],
    Field(min_length=2, max_length=2, description=f"two whole numbers from 0 to {LENGTH} are needed"),
    BeforeValidator(pair),
]
Dimension = Annotated[int, Field(ge=-DIMENSIONS, le=DIMENSIONS, description="the number of a dimension is needed")]
Epsilon = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1 is needed")]
Flag = Annotated[bool, Field(description="true or false is needed")]
Part = Annotated[dict[str, Any], Field(description="the description of a module is needed")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]


class NoOptions(Fields):
    """Options of a module that has none."""


class InPlace(Fields):
    """Options of an activation. inplace: whether it overwrites its input."""

    inplace: Flag = False


class LinearOptions(Fields):
    """Options of a linear."""

    in_features: Size
    out_features: Size
    bias: Flag = True


class SamePadOptions(Fields):
    """Options of a convolution without those of its padding."""

    in_channels: Size
    out_channels: Size
    kernel_size: Sides
    stride: Sides = [1, 1]
    dilation: Sides = [1, 1]
    groups: Size = 1
    bias: Flag = True


class ConvOptions(SamePadOptions):
    """Options of a convolution. padding: zeros at both sides of height and width."""

    padding: Padding = [0, 0]


class ConvTransposeOptions(ConvOptions):
    """Options of a transposed convolution. output_padding: rows and columns that are added at one side."""

    output_padding: Padding = [0, 0]


class BatchNormOptions(Fields):
    """Options of a batch normalization."""

    num_features: Size
    eps: Epsilon = 1e-5
    momentum: Epsilon | None = 0.1
    affine: Flag = True
    track_running_stats: Flag = True


class LayerNormOptions(Fields):
    """Options of a layer normalization. normalized_shape: the sizes of the last dimensions."""

    normalized_shape: Annotated[
        list[Size], Field(min_length=1, max_length=DIMENSIONS, description="a list of sizes is needed")
    ]
    eps: Epsilon = 1e-5
    elementwise_affine: Flag = True
    bias: Flag = True


class GroupNormOptions(Fields):
    """Options of a group normalization."""

    num_groups: Size
    num_channels: Size
    eps: Epsilon = 1e-5
    affine: Flag = True


class MaxPoolOptions(Fields):
    """Options of max pooling."""

    kernel_size: Sides
    stride: Sides | None = None
    padding: Padding = [0, 0]
    dilation: Sides = [1, 1]
    ceil_mode: Flag = False


class AvgPoolOptions(Fields):
    """Options of average pooling."""

    kernel_size: Sides
    stride: Sides | None = None
    padding: Padding = [0, 0]
    ceil_mode: Flag = False
    count_include_pad: Flag = True


class AdaptivePoolOptions(Fields):
    """Options of pooling to a fixed size."""

    output_size: Sides


class ZeroPadOptions(Fields):
    """Options of padding. padding: zeros left, right, above and below."""

    padding: Annotated[
        list[Zeros],
        Field(min_length=4, max_length=4, description=f"four whole numbers from 0 to {LENGTH} are needed"),
    ]


class GeluOptions(Fields):
    """Options of GELU."""

    approximate: Annotated[Literal["none", "tanh"], Field(description="none or tanh is needed")] = "none"


class LeakyOptions(InPlace):
    """Options of a leaky ReLU."""

    negative_slope: Annotated[float, Field(description="a number is needed")] = 0.01


class FlattenOptions(Fields):
    """Options of flattening."""

    start_dim: Dimension = 1
    end_dim: Dimension = -1


class UnflattenOptions(Fields):
    """Options of unflattening. dim: the dimension that is divided; unflattened_size: into these."""

    dim: Dimension
    unflattened_size: Annotated[
        list[Size], Field(min_length=1, max_length=DIMENSIONS, description="a list of sizes is needed")
    ]


class DropoutOptions(InPlace):
    """Options of dropout. p: the probability."""

    p: Epsilon = 0.5


class ChannelOptions(Fields):
    """Options of a scale per channel."""

    channels: Size


class TexelOptions(Fields):
    """Options of a bias per pixel."""

    channels: Size
    height: Side
    width: Side


class SequentialOptions(Fields):
    """Parts of a sequence: name -> description, in the order in which they run."""

    modules: Annotated[
        dict[Name, Part], Field(description="an object from names (letters, digits, _) to descriptions is needed")
    ]


class ResidualOptions(Fields):
    """Parts of a residual block; see ``blocks.ResidualBlock``."""

    branch: Part
    shortcut: Part | None = None
    after: Part | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of module. fixed: attributes that no option states, with the value that they must have."""

    module: type[nn.Module]
    options: type[Fields]
    fixed: Mapping[str, Any] = field(default_factory=dict)


ZERO_PADDING = {"padding_mode": "zeros"}
KINDS = {
    "sequential": Kind(nn.Sequential, SequentialOptions),
    "residual_block": Kind(ResidualBlock, ResidualOptions),
    "identity": Kind(nn.Identity, NoOptions),
    "linear": Kind(nn.Linear, LinearOptions),
    "conv2d": Kind(nn.Conv2d, ConvOptions, ZERO_PADDING),
    "same_pad_conv2d": Kind(SamePadConv2d, SamePadOptions, ZERO_PADDING | {"padding": (0, 0)}),
    "conv_transpose2d": Kind(nn.ConvTranspose2d, ConvTransposeOptions, ZERO_PADDING),
    "texel_bias": Kind(TexelBias, TexelOptions),
    "channel_scale": Kind(ChannelScale, ChannelOptions),
    "batch_norm1d": Kind(nn.BatchNorm1d, BatchNormOptions),
    "batch_norm2d": Kind(nn.BatchNorm2d, BatchNormOptions),
    "token_batch_norm": Kind(TokenBatchNorm, BatchNormOptions),
    "layer_norm": Kind(nn.LayerNorm, LayerNormOptions),
    "group_norm": Kind(nn.GroupNorm, GroupNormOptions),
    "relu": Kind(nn.ReLU, InPlace),
    "relu6": Kind(nn.ReLU6, InPlace),
    "leaky_relu": Kind(nn.LeakyReLU, LeakyOptions),
    "gelu": Kind(nn.GELU, GeluOptions),
    "silu": Kind(nn.SiLU, InPlace),
    "mish": Kind(nn.Mish, InPlace),
    "hardswish": Kind(nn.Hardswish, InPlace),
    "hardsigmoid": Kind(nn.Hardsigmoid, InPlace),
    "sigmoid": Kind(nn.Sigmoid, NoOptions),
    "tanh": Kind(nn.Tanh, NoOptions),
    "max_pool2d": Kind(nn.MaxPool2d, MaxPoolOptions, {"return_indices": False}),
    "avg_pool2d": Kind(nn.AvgPool2d, AvgPoolOptions, {"divisor_override": None}),
    "adaptive_avg_pool2d": Kind(nn.AdaptiveAvgPool2d, AdaptivePoolOptions),
    "zero_pad2d": Kind(nn.ZeroPad2d, ZeroPadOptions),
    "flatten": Kind(nn.Flatten, FlattenOptions),
    "unflatten": Kind(nn.Unflatten, UnflattenOptions),
    "dropout": Kind(nn.Dropout, DropoutOptions),
}
KIND_OF = {kind.module: name for name, kind in KINDS.items()}
