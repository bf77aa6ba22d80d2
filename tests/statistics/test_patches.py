"""The input patches that the weight of a convolution is multiplied with."""

import pytest
import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.graph.modules import as_matrix
from jettison.statistics.stats import input_rows

SHAPES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(2, 5), stride=(2, 1), padding=(0, 2)),
    dict(kernel_size=3, dilation=2, padding=1, groups=2),
    dict(kernel_size=3, groups=4),
    dict(kernel_size=1, stride=2),
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_patches_times_the_weight_are_the_outputs(settings):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 8, **settings), torch.randn(2, 4, 9, 7)
    rows = input_rows(conv, x)  # (batch, places, groups, columns)
    weight = as_matrix(conv.weight, "conv2d").unflatten(0, (conv.groups, -1))  # (groups, out / groups, columns)
    outputs = torch.einsum("bpgc,goc->bgop", rows, weight).flatten(1, 2) + conv.bias.view(1, -1, 1)
    assert torch.allclose(outputs, conv(x).flatten(2), atol=1e-5)


def test_a_linear_is_given_its_inputs():
    x = torch.randn(2, 3, 4)
    assert input_rows(nn.Linear(4, 5), x) is x


def test_padding_that_is_not_zeros_is_refused():
    with pytest.raises(JettisonError, match="padding reflect"):
        input_rows(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.zeros(1, 1, 5, 5))
