"""Descriptions of modules: they come back equal, and damaged ones are refused in one line."""

import json
import os
import random
from collections import OrderedDict

import pytest
import torch
from killing import killed_at
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_tf_padding

from jettison import compress, evaluate, load, verify
from jettison.core.errors import JettisonError, UsageError
from jettison.graph.blocks import ChannelScale, ResidualBlock, SamePadConv2d, TexelBias, TokenBatchNorm
from jettison.graph.described import DEEPEST, build, describe
from jettison.graph.described_files import load_described, save_described
from jettison.graph.described_kinds import KINDS

IMAGE, TOKENS = (2, 8, 9, 7), (2, 5, 8)  # (batch, channels, height, width), (batch, tokens, channels)
SAMPLES = {  # kind -> modules, and the shape of their input
    "sequential": ([nn.Sequential(), nn.Sequential(OrderedDict(one=nn.ReLU(), two=nn.Conv2d(8, 4, 1)))], IMAGE),
    "residual_block": (
        [
            ResidualBlock(nn.Conv2d(8, 8, 3, padding=1)),
            ResidualBlock(nn.Conv2d(8, 8, 1), nn.Identity()),
            ResidualBlock(nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1, bias=False), nn.ReLU()),
        ],
        IMAGE,
    ),
    "identity": ([nn.Identity()], IMAGE),
    "linear": ([nn.Linear(8, 3), nn.Linear(8, 3, bias=False)], TOKENS),
    "conv2d": (
        [
            nn.Conv2d(8, 4, 3),
            nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=8, bias=False),
            nn.Conv2d(8, 4, 3, padding=2, dilation=(2, 1), groups=4),
            nn.Conv2d(8, 4, (5, 3), padding="same", dilation=(1, 2)),
            nn.Conv2d(8, 4, 3, padding="valid"),
        ],
        IMAGE,
    ),
    "same_pad_conv2d": ([SamePadConv2d(8, 4, 3, stride=2), SamePadConv2d(8, 8, 4, groups=8, bias=False)], IMAGE),
    "conv_transpose2d": (
        [
            nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False),
            nn.ConvTranspose2d(8, 8, (3, 2), (3, 1), (1, 0), output_padding=(2, 0), groups=4, dilation=(2, 1)),
        ],
        IMAGE,
    ),
    "texel_bias": ([TexelBias(8, 9, 7)], IMAGE),
    "channel_scale": ([ChannelScale(8)], IMAGE),
    "batch_norm1d": ([nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False, momentum=None)], (4, 8)),
    "batch_norm2d": ([nn.BatchNorm2d(8, eps=1e-3), nn.BatchNorm2d(8, track_running_stats=False)], IMAGE),
    "token_batch_norm": ([TokenBatchNorm(8)], TOKENS),
    "layer_norm": (
        [nn.LayerNorm(8), nn.LayerNorm((5, 8), elementwise_affine=False), nn.LayerNorm(8, bias=False)],
        TOKENS,
    ),
    "group_norm": ([nn.GroupNorm(2, 8), nn.GroupNorm(1, 8, affine=False)], IMAGE),
    "relu": ([nn.ReLU(), nn.ReLU(inplace=True)], IMAGE),
    "relu6": ([nn.ReLU6()], IMAGE),
    "leaky_relu": ([nn.LeakyReLU(0.3)], IMAGE),
    "gelu": ([nn.GELU(), nn.GELU("tanh"), ACT2FN["gelu"]], IMAGE),
    "silu": ([nn.SiLU()], IMAGE),
    "mish": ([nn.Mish()], IMAGE),
    "hardswish": ([nn.Hardswish()], IMAGE),
    "hardsigmoid": ([nn.Hardsigmoid()], IMAGE),
    "sigmoid": ([nn.Sigmoid()], IMAGE),
    "tanh": ([nn.Tanh()], IMAGE),
    "max_pool2d": ([nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 1), dilation=2, ceil_mode=True)], IMAGE),
    "avg_pool2d": ([nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.AvgPool2d(2, ceil_mode=True)], IMAGE),
    "adaptive_avg_pool2d": ([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 2))], IMAGE),
    "zero_pad2d": ([nn.ZeroPad2d(1), nn.ZeroPad2d((0, 1, 2, 3))], IMAGE),
    "flatten": ([nn.Flatten(), nn.Flatten(2)], IMAGE),
    "unflatten": ([nn.Unflatten(1, (4, 2)), nn.Unflatten(-1, (7,))], IMAGE),
    "dropout": ([nn.Dropout(0.3)], IMAGE),
}


def shaken(module: nn.Module) -> nn.Module:
    """Give all parameters and running statistics other values than those of a new module."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape) * 0.5)
    return module.eval()


def rebuilt(module: nn.Module) -> nn.Module:
    """Describe a module, write the description as JSON, build it without values, and fill these in."""
    spec = json.loads(json.dumps(describe(module)))
    with torch.device("meta"):
        again = build(spec, "it")
    assert describe(again) == spec
    again.load_state_dict(module.state_dict(), assign=True)
    return again.eval()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_comes_back(kind):
    modules, shape = SAMPLES[kind]
    for module in modules:
        again, x = rebuilt(shaken(module)), torch.randn(shape)
        assert describe(module)["kind"] == kind
        assert torch.equal(again(x.clone()), module(x.clone())), module


def random_module(rng: random.Random, channels: int, depth: int) -> nn.Module:
    """Make nested blocks that keep an image's size and channels."""
    if depth == 0:
        return rng.choice(
            [
                lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=rng.choice([1, channels])),
                lambda: SamePadConv2d(channels, channels, rng.choice([1, 2, 5])),
                lambda: nn.BatchNorm2d(channels),
                lambda: nn.GroupNorm(2, channels),
                lambda: ChannelScale(channels),
                lambda: nn.GELU(rng.choice(["none", "tanh"])),
                lambda: nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), nn.Conv2d(channels, channels, 3)),
            ]
        )()
    inner = lambda: random_module(rng, channels, depth - 1)
    if rng.random() < 0.5:
        return nn.Sequential(*(inner() for _ in range(rng.randrange(1, 4))))
    shortcut = rng.choice([None, nn.Identity(), inner()])
    return ResidualBlock(inner(), shortcut, rng.choice([None, nn.ReLU6(), nn.Hardswish()]))


@pytest.mark.parametrize("seed", range(25))
def test_nested_modules_come_back(seed):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    module, x = shaken(random_module(rng, 4, rng.randrange(1, 5))), torch.randn(2, 4, 6, 5)
    assert torch.equal(rebuilt(module)(x), module(x))


@pytest.mark.parametrize("size", [(7, 7), (8, 5), (1, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), ((5, 2), (3, 2), 1), (3, 1, 2), (1, 2, 1)]
)
def test_padding_is_that_of_mobilenet(size, kernel, stride, dilation):
    conv, x = SamePadConv2d(3, 4, kernel, stride=stride, dilation=dilation), torch.randn(2, 3, *size)
    assert torch.equal(conv(x), nn.Conv2d.forward(conv, apply_tf_padding(x, conv)))


def test_blocks_compute_what_they_say():
    double, negate, x = ChannelScale(3), ChannelScale(3), torch.randn(2, 3, 4, 4)
    double.weight.data[:], negate.weight.data[:] = torch.tensor([2.0, 3.0, 4.0]), -1
    scale = torch.tensor([2.0, 3.0, 4.0]).view(1, 3, 1, 1)
    assert torch.equal(ResidualBlock(double)(x), scale * x)
    assert torch.equal(ResidualBlock(double, nn.Identity())(x), x + scale * x)
    assert torch.equal(ResidualBlock(double, negate, nn.ReLU())(x), (scale * x - x).relu())
    norm, tokens = shaken(TokenBatchNorm(8)), torch.randn(2, 5, 8)
    expected = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    assert torch.allclose(norm(tokens), expected, atol=1e-6)


class Mine(nn.Conv2d):
    pass


def hooked() -> nn.Module:
    module = nn.ReLU()
    module.register_forward_hook(lambda module, args, output: -output)
    return module


def with_forward() -> nn.Module:
    module = nn.ReLU()
    module.forward = torch.sigmoid
    return module


def with_parameter() -> nn.Module:
    module = nn.ReLU()
    module.extra = nn.Parameter(torch.ones(2))
    return module


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Mine(3, 3, 1), "Mine has no description"),
        (nn.Conv1d(3, 3, 1), "Conv1d has no description"),
        (nn.Conv2d(3, 3, 3, padding_mode="reflect"), "padding_mode = 'reflect'"),
        (nn.Conv2d(3, 3, 2, padding="same"), "same"),
        (SamePadConv2d(3, 3, 3, padding=1), "padding = (1, 1)"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices = True"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override = 3"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "no description"),
        (hooked(), "hooks"),
        (with_forward(), "another forward"),
        (with_parameter(), "extra belongs to no description"),
    ],
)
def test_what_has_no_description_is_named(module, words):
    with pytest.raises(UsageError) as error:
        describe(nn.Sequential(OrderedDict(a=nn.ReLU(), b=ResidualBlock(module))), "encoder")
    text = str(error.value)
    assert words in text and "valid: " in text and "conv2d" in text and "ONNX" in text
    assert "encoder.b.branch" in text or "b.branch.extra" in text


def test_too_deep_a_module_is_refused():
    module = nn.ReLU()
    for _ in range(DEEPEST):
        module = nn.Sequential(module)
    with pytest.raises(UsageError, match="levels deep"):
        describe(module)


CONV = {"kind": "conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3}
LINEAR = {"kind": "linear", "in_features": 3, "out_features": 4}


def nested(levels: int) -> dict:
    spec = {"kind": "relu"}
    for _ in range(levels):
        spec = {"kind": "residual_block", "branch": spec}
    return spec


LARGE = {"in_features": 1 << 19, "out_features": 1 << 19}
HOSTILE = [
    (None, "NoneType; the description of a module"),
    ([CONV], "list; the description of a module"),
    ({}, "unknown kind None"),
    ({"kind": "os.system"}, "unknown kind 'os.system' of it; valid: adaptive_avg_pool2d"),
    ({"kind": ["relu"]}, "unknown kind ['relu']"),
    ({"kind": "conv2"}, "did you mean 'conv2d'"),
    (CONV | {"device": "cuda"}, "unknown option 'device' of it, which is a conv2d"),
    (CONV | {"in_channels": 10**30}, "in_channels = 1000"),
    (CONV | {"in_channels": True}, "in_channels = True: a whole number"),
    (CONV | {"in_channels": 3.0}, "in_channels = 3.0"),
    (CONV | {"in_channels": "3"}, "in_channels = '3'"),
    (CONV | {"groups": 2}, "such a conv2d cannot be built"),
    (CONV | {"kernel_size": [3]}, "kernel_size = [3]: two whole numbers"),
    (CONV | {"kernel_size": [3, 10**9]}, "kernel_size"),
    (CONV | {"padding": -1}, "padding"),
    (CONV | {"padding": "same"}, "padding = 'same'"),
    (CONV | {"bias": 1}, "bias = 1: true or false"),
    ({"kind": "conv2d"}, "in_channels"),
    ({"kind": "linear", "in_features": 1 << 24, "out_features": 1 << 24}, "parameters"),
    ({"kind": "sequential", "modules": {str(i): LINEAR | LARGE for i in range(4)}}, "parameters"),
    ({"kind": "layer_norm", "normalized_shape": [1 << 24] * 8}, "cannot be built"),
    ({"kind": "gelu", "approximate": "sometimes"}, "approximate = 'sometimes': none or tanh"),
    ({"kind": "dropout", "p": 2}, "p = 2"),
    ({"kind": "leaky_relu", "negative_slope": "x"}, "negative_slope = 'x'"),
    ({"kind": "sequential"}, "modules"),
    ({"kind": "sequential", "modules": [CONV]}, "modules"),
    ({"kind": "sequential", "modules": {"a.b": CONV}}, "modules"),
    ({"kind": "sequential", "modules": {"forward": CONV}}, "a name that modules use themselves"),
    ({"kind": "sequential", "modules": {"a": None}}, "modules"),
    ({"kind": "sequential", "modules": {str(i): {"kind": "relu"} for i in range(20_001)}}, "more than 20000 modules"),
    ({"kind": "residual_block", "branch": None}, "branch"),
    ({"kind": "residual_block", "branch": {"kind": "nothing"}}, "'nothing' of it.branch"),
    (nested(DEEPEST), "levels deep"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_damaged_description_is_refused(spec, words):
    with pytest.raises(JettisonError) as error, torch.device("meta"):
        build(spec, "it")
    assert words in str(error.value) and not isinstance(error.value, UsageError)
    assert "\n" not in str(error.value)


def test_a_description_of_the_greatest_depth_is_read():
    with torch.device("meta"):
        build(nested(DEEPEST - 1), "it")


# A whole model without a config


def network() -> nn.Module:
    torch.manual_seed(0)
    relu = nn.ReLU()  # used twice
    block = ResidualBlock(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), nn.Identity(), relu)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5)]
    return shaken(nn.Sequential(SamePadConv2d(3, 8, 3, stride=2), relu, block, *tail))


def test_a_whole_model_is_saved_and_loaded(tmp_path):
    model, x = network(), torch.randn(4, 3, 11, 10)
    save_described(model.double(), tmp_path / "m")
    again = load_described(tmp_path / "m")
    assert torch.equal(again(x.double()), model(x.double())) and not again.training
    assert {file.name for file in (tmp_path / "m").iterdir()} == {"modules.json", "model.safetensors"}
    loaded = load(tmp_path / "m", dtype=torch.float32)
    assert torch.equal(loaded.logits(x), model.float()(x)) and loaded.model[6].weight.dtype == torch.float32
    with pytest.raises(UsageError, match="is no language model: it writes no text"):
        loaded.generate("It was")


def test_a_tied_parameter_is_saved(tmp_path):
    linear = nn.Linear(4, 4)
    model, x = nn.Sequential(linear, nn.ReLU(), linear), torch.randn(2, 4)
    save_described(model, tmp_path)
    assert torch.equal(load_described(tmp_path)(x), model(x))


def test_commands_refuse_a_whole_model_in_one_line(jettison, tmp_path):
    save_described(network(), tmp_path / "m")
    for command in (
        ["compress", tmp_path / "m", "--recipe", "w8", "--out", tmp_path / "o"],
        ["evaluate", tmp_path / "m"],
        ["verify", tmp_path / "m"],
        ["plan", tmp_path / "m", "--memory", "1MB"],
        ["draft", tmp_path / "m"],
    ):
        code, _, error = jettison(*command)
        assert code == 2 and "transformers does not have: only jettison.load reads it" in " ".join(error.split())
    assert not (tmp_path / "o").exists()
    code, _, error = jettison("generate", tmp_path / "m", "--prompt", "It was")
    assert code == 2 and "is no language model: it writes no text" in " ".join(error.split())


@pytest.mark.parametrize("write", [0, 1])
def test_a_killed_save_leaves_no_mixture(tmp_path, write):
    """New weights never stand beside the description of other ones."""
    save_described(nn.Linear(3, 3), tmp_path)
    with killed_at(write):
        save_described(nn.Linear(5, 5), tmp_path)
    with pytest.raises(UsageError, match="needs modules.json"):
        load_described(tmp_path)
    save_described(nn.Linear(5, 5), tmp_path)
    assert load_described(tmp_path).in_features == 5


def test_a_model_of_transformers_is_not_overwritten(tiny):
    folder = tiny("resnet")
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError, match="holds a model of transformers"):
        save_described(nn.ReLU(), folder)
    assert sorted(os.listdir(folder)) == before


def describe_as(folder, content):
    (folder / "modules.json").write_text(content if isinstance(content, str) else json.dumps(content))


def rewrite(file, **changes):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: rewrite(f / "model.safetensors", bias=None), "no tensor bias"),
        (lambda f: rewrite(f / "model.safetensors", more=torch.ones(2)), "a tensor more, which no module"),
        (lambda f: rewrite(f / "model.safetensors", bias=torch.ones(7)), "shape (7,), modules.json asks for (4,)"),
        (lambda f: rewrite(f / "model.safetensors", bias=torch.ones(4, dtype=torch.int32)), "bias is stored as int32"),
        (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no tensors"), "truncated or damaged"),
        (lambda f: describe_as(f, "{"), "not readable JSON"),
        (lambda f: describe_as(f, "[]"), "an object was expected"),
        (lambda f: describe_as(f, "{}"), "model = None; an object is needed"),
        (lambda f: describe_as(f, '{"model": {"kind": "relu"}, "code": "x"}'), "unknown field 'code'"),
        (lambda f: describe_as(f, '{"replaced": {}}'), "unknown field 'replaced'"),
        (lambda f: describe_as(f, '{"a":' * 5000 + "1" + "}" * 5000), "nested too deeply"),
        (lambda f: describe_as(f, {"model": LINEAR | {"in_features": 10**30}}), "in_features"),
        (lambda f: describe_as(f, {"model": LINEAR | {"out_features": 1 << 23}}), "has shape"),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_damaged_folder_is_refused(tmp_path, damage, words):
    save_described(nn.Linear(3, 4), tmp_path)
    damage(tmp_path)
    with pytest.raises(JettisonError) as error:
        load(tmp_path)
    assert words in str(error.value)


def test_verbs_are_for_model_folders(tmp_path):
    save_described(network(), tmp_path / "m")
    for verb in (verify, evaluate, lambda folder: compress(folder, "w8", tmp_path / "o")):
        with pytest.raises(UsageError, match="only jettison.load reads it"):
            verb(tmp_path / "m")
