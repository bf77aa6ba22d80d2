"""A convolution as data computes what PyTorch and transformers compute."""

from dataclasses import replace

import pytest
import torch
from convolutions import convolutions, make, many, random, seeds, sizes, smallest
from hypothesis import given
from torch import nn
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.numerics.merging import (
    Convolution,
    from_conv,
    scale_after,
    scale_before,
)

# A convolution as data.


@many
@given(convolutions(), sizes, seeds)
def test_it_computes_what_pytorch_computes(conv, extra, seed):
    (ins, outs), (left, right, top, bottom) = conv.channels, conv.padding
    layer = nn.Conv2d(ins, outs, conv.kernel, conv.stride, (0, 0), conv.dilation, conv.groups, dtype=torch.float64)
    layer.weight.data, layer.bias.data = conv.weight, conv.bias
    pad = nn.ZeroPad2d((left, right, top, bottom))
    size = [low + more for low, more in zip(smallest(conv), extra, strict=True)]
    x = random((1, ins, *size), seed)
    torch.testing.assert_close(conv(x), layer(pad(x)))
    assert conv.output_size(*size) == tuple(conv(x).shape[2:])
    assert conv.weights == sum(value.numel() for value in layer.parameters())
    # Where weights and padded inputs are ones, an output counts its own multiply-adds.
    with torch.no_grad():
        layer.weight.fill_(1), layer.bias.fill_(0)
        counts = layer(functional.pad(torch.ones_like(x), (left, right, top, bottom), value=1))
    assert conv.flops(*size) == round(counts.sum().item())


def test_flops_of_a_loop():
    conv, count = make(4, 6, (3, 2), (2, 1), groups=2, padding=(1, 0, 2, 0)), 0
    for _row in range(0, 7 + 2 - 2, 2):
        for _column in range(5 + 1 - 1):
            for _out in range(6):
                count += 4 // 2 * 3 * 2
    assert conv.flops(7, 5) == count


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 4))
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_is_the_padding_of_transformers(kernel, stride, dilation):
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_tf_padding

    layer = nn.Conv2d(1, 1, (kernel, 3), (stride, 2), 0, (dilation, 1), dtype=torch.float64)
    conv = from_conv(layer.weight.data, layer.bias.data, layer.stride, 0, layer.dilation)
    conv = replace(conv, padding="same")
    for size in range(1, 21):
        x = random((1, 1, size, 20 - size + 1), size)
        padded = apply_tf_padding(x, layer)
        if padded.shape[2] > dilation * (kernel - 1) and padded.shape[3] > 2:
            torch.testing.assert_close(conv(x), layer(padded))
            assert conv.output_size(*x.shape[2:]) == tuple(layer(padded).shape[2:])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_from_conv_reads_arguments_of_pytorch(padding, dilation):
    layer = nn.Conv2d(4, 2, (3, 4), 1, padding, dilation, 2, bias=False, dtype=torch.float64)
    conv, x = from_conv(layer.weight.data, None, 1, padding, dilation, 2), random((1, 4, 12, 13), 0)
    torch.testing.assert_close(conv(x), layer(x))


def test_from_conv_reads_linears_four_sides_and_the_padding_of_tensorflow():
    layer = nn.Linear(3, 5, dtype=torch.float64)
    x = random((2, 4, 4, 3), 0)
    y = from_conv(layer.weight.data, layer.bias.data)(x.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(y, layer(x))
    weight = random((2, 2, 3, 3), 0)
    assert from_conv(weight, padding=(0, 1, 2, 3)).padding == (0, 1, 2, 3)
    assert from_conv(weight, stride=2, padding="same").padding == "same"


# Arguments.


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: Convolution(torch.ones(2, 2), torch.ones(2)),
        lambda: Convolution(torch.ones(2, 2, 1, 1), torch.ones(3)),
        lambda: Convolution(torch.ones(2, 2, 1, 0), torch.ones(2)),
        lambda: Convolution(torch.ones(2, 2, 1, 1), torch.ones(2), groups=3),
        lambda: Convolution(torch.ones(2, 2, 1, 1), torch.ones(2), stride=(0, 1)),
        lambda: Convolution(torch.ones(2, 2, 1, 1), torch.ones(2), padding=(1, 1)),
        lambda: Convolution(torch.ones(2, 2, 1, 1), torch.ones(2), padding=(1, 1, 1, -1)),
        lambda: from_conv(torch.ones(2, 2, 1, 1), padding="reflect"),
        lambda: scale_after(make(2, 3), torch.ones(2), torch.ones(3)),
        lambda: scale_before(make(2, 3), torch.ones(2), torch.ones(1)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make_it):
    with pytest.raises(UsageError, match="valid|at least"):
        make_it()
