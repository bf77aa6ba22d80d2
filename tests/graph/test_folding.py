"""Batch normalizations are folded where nothing else uses the convolution's output, and nowhere else."""

import copy

import pytest
import torch
from products import random_weight
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from jettison.encodings.uniform import UniformGrid
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.graph.folding import fold_batch_norms, logits_of
from jettison.graph.modules import PackedConv2d

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def fill(model: nn.Module) -> nn.Module:
    """Give the normalizations statistics and parameters that matter."""
    torch.manual_seed(0)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]:
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:
                tensor.data.uniform_(0.5, 2)
    return model


@torch.no_grad()
def check_same(model: nn.Module, pixels: torch.Tensor) -> nn.Module:
    """Fold a model, check that the outputs are the same and the model is as it was, and return the folded one."""
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model, pixels[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    training = model.training
    expected, got = logits_of(model.eval(), pixels), logits_of(folded, pixels)
    model.train(training)
    assert (expected - got).abs().max() <= CLOSE[pixels.dtype] * expected.abs().max()
    assert not folded.training
    return folded


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2", "convnext"])
def test_families(tiny, family, dtype):
    model = load_dense(ModelFolder(tiny(family)), dtype).train()
    assert norms(check_same(model, torch.randn(2, 3, 37, 41, dtype=dtype))) == 0
    assert model.training and (norms(model) > 0) == (family != "convnext")


@pytest.mark.parametrize("dtype", CLOSE)
def test_one_dimension(dtype):
    """Speech models of XRBench normalize after convolutions over time."""
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6)).to(dtype)
    folded = check_same(fill(model), torch.randn(2, 4, 20, dtype=dtype))
    assert norms(folded) == 1, "the second one follows no convolution"


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_sequences(dtype, affine, biased):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=biased, padding_mode="reflect")
    model = fill(nn.Sequential(conv, nn.Identity(), nn.BatchNorm2d(6, affine=affine), nn.ReLU()))
    folded = check_same(model.to(dtype), torch.randn(2, 4, 9, 11, dtype=dtype))
    assert norms(folded) == 0 and folded[0].bias is not None and (model[0].bias is not None) == biased


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_convolutions_stay_packed(symmetric, biased):
    like = nn.Conv2d(8, 12, 3, bias=biased)
    weight = random_weight(UniformGrid(8, 24, symmetric), 12, 72)
    bias = like.bias.detach() if biased else None
    model = fill(nn.Sequential(PackedConv2d(weight.grid, like, **weight.parts(), bias=bias), nn.BatchNorm2d(12)))
    folded = check_same(model, torch.randn(2, 8, 7, 7))
    assert norms(folded) == 0 and torch.equal(folded[0].weight_packed, model[0].weight_packed)


class Uses(nn.Module):
    """A convolution and a normalization, between which something else happens."""

    def __init__(self, use, conv=None, norm=None):
        super().__init__()
        self.conv, self.norm = conv or nn.Conv2d(4, 4, 3, padding=1), norm or nn.BatchNorm2d(4)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


class DoubledConv2d(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x).relu()


def hooked() -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, result: result.relu())
    return conv


def shortcut(model, x):
    x = model.conv(x)
    return model.norm(x) + x


def returned(model, x):
    x = model.conv(x)
    return torch.cat([model.norm(x), x])


def twice(model, x):
    return model.norm(model.conv(model.conv(x)))


def normalized_twice(model, x):
    return model.norm(model.norm(model.conv(x)))


def in_place(model, x):
    return model.norm(model.conv(x).relu_())


def plain(model, x):
    return model.norm(model.conv(x))


@pytest.mark.parametrize(
    "model",
    [
        Uses(shortcut),
        Uses(returned),
        Uses(twice),
        Uses(normalized_twice),
        Uses(in_place),
        Uses(plain, conv=DoubledConv2d(4, 4, 3, padding=1)),
        Uses(plain, conv=hooked()),
        Uses(plain, conv=weight_norm(nn.Conv2d(4, 4, 3, padding=1))),
        Uses(plain, norm=nn.BatchNorm2d(4, track_running_stats=False)),
        Uses(plain, conv=nn.ConvTranspose2d(4, 4, 3, padding=1)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
    ],
    ids=lambda model: getattr(getattr(model, "use", None), "__name__", "other"),
)
def test_what_is_not_clear_stays(model):
    assert norms(check_same(fill(model.eval()), torch.randn(2, 4, 8, 8))) == 1


def test_an_output_that_is_also_a_logit_stays():
    model = fill(Uses(lambda m, x: (lambda y: {"logits": m.norm(y), "features": y})(m.conv(x))).eval())
    assert norms(fold_batch_norms(model, torch.randn(1, 4, 8, 8))) == 1


def test_reading_the_shape_is_no_use():
    model = fill(Uses(lambda m, x: (lambda y: m.norm(y).view(y.shape[0], -1, y.size(-1)))(m.conv(x))).eval())
    assert norms(check_same(model, torch.randn(2, 4, 8, 8))) == 0
