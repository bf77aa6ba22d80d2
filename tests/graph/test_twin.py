"""Pruned twins: they mix with their block, learn, are recalibrated, and merge exactly."""

import random
import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import tiny as maker
import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

from jettison.core.errors import UsageError
from jettison.graph.blocks import TokenBatchNorm, pad_same
from jettison.graph.families import families
from jettison.graph.merge import all_cuts, cheapest, cost, merge, merge_twins, partitions
from jettison.graph.parts import check_parts
from jettison.graph.residual import Residual, find_residuals
from jettison.graph.twin import batch_norms, install_twins, recalibrating, remove_twin, set_fades

SIZES = [(16, 16), (15, 17), (9, 12)]
KINDS = {
    "resnet": dict(maker.VISION["resnet"], depths=[2, 2]),
    "bottleneck": dict(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="bottleneck"),
    "mobilenet_v2": dict(depth_multiplier=0.25),
    "dilated": dict(depth_multiplier=0.25, output_stride=8),
    "unpadded": dict(depth_multiplier=0.25, tf_padding=False),
    "convnext": maker.VISION["convnext"],
    "vit": maker.VIT,
    "deit": maker.VIT,
}
FAMILY = {"bottleneck": "resnet", "dilated": "mobilenet_v2", "unpadded": "mobilenet_v2"}


def make(kind, seed=0):
    """Return a random model of transformers with random statistics, its residual blocks, and a size of its images."""
    torch.manual_seed(seed)
    family = FAMILY.get(kind, kind)
    config = AutoConfig.for_model(family, num_labels=3, **KINDS[kind])
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model = (classes[0] if isinstance(classes, tuple) else classes)(config).eval()
    shake(model)
    row = families()[family]
    pattern = re.compile(
        row.blocks.replace(".", r"\.").replace("*", "[0-9]+") + ("" if "*" in row.blocks else r"\.[0-9]+")
    )
    paths = tuple(path for path, _ in model.named_modules() if pattern.fullmatch(path))
    return model, find_residuals(model, SimpleNamespace(family=row, blocks=len(paths), path=paths.__getitem__))


def shake(module):
    """Make all parameters and statistics random, of a size that keeps activations near one."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.copy_(torch.randn_like(layer.weight) / layer.weight[0].numel() ** 0.5)
            elif hasattr(layer, "eps") and getattr(layer, "weight", None) is not None:
                layer.weight.copy_(torch.rand_like(layer.weight) + 0.5)
            if isinstance(getattr(layer, "bias", None), nn.Parameter):
                layer.bias.copy_(torch.randn_like(layer.bias) * 0.3)
            if getattr(layer, "running_mean", None) is not None:
                layer.running_mean.copy_(torch.randn_like(layer.running_mean) * 0.3)
                layer.running_var.copy_(torch.rand_like(layer.running_var) + 0.5)


def close(one, two, bound):
    """Check that two tensors differ by at most ``bound`` of the largest value, or of one."""
    assert one.shape == two.shape
    apart = float((one - two).abs().max() / one.abs().max().clamp(min=1))
    assert apart <= bound, apart


def images(model, size, dtype):
    if hasattr(model.config, "patch_size"):
        size = (model.config.image_size,) * 2
    return torch.randn(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


MORE_KERNELS = ("resnet", "convnext")  # few others have more than one kernel above 1 in a block


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        pytest.param(kind, kernel, marks=pytest.mark.slow if kernel >= 0 and kind not in MORE_KERNELS else ())
        for kind in KINDS
        for kernel in (-1, 0, 1, 3)
    ],
)
def test_a_merged_model_equals_its_twins(kind, kernel):
    """In float64 to 1e-10 and in float32 to 1e-4, for images of even and odd sizes."""
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        for size in SIZES if kind not in ("vit", "deit") else SIZES[:1]:
            model, residuals = make(kind)
            model.to(dtype)
            twins = install_twins(model, residuals, None if kernel < 0 else kernel)
            for twin in twins:
                shake(twin.norms)
                shake(twin.shortcut_norms)
            set_fades(twins, [1] * len(twins))
            with torch.no_grad():
                x = images(model, size, dtype)
                before = model(x).logits
                records = merge_twins(model, twins)
                close(before, model(x).logits, bound)
            assert len(records) == len(residuals)
            assert all(1 <= entry["after"]["layers"] <= entry["before"]["layers"] for entry in records)
            assert all(type(entry["after"]["multiply_adds"]) is int for entry in records)


@pytest.mark.parametrize("kind", KINDS)
def test_all_partitions_are_equal(kind):
    model, residuals = make(kind)
    twins = install_twins(model.double(), residuals)
    for twin in twins:
        shake(twin.norms)
    set_fades(twins, [1] * len(twins))
    inputs = {}
    for number, twin in enumerate(twins):
        twin.register_forward_pre_hook(lambda _, args, number=number: inputs.update({number: args[0]}))
    with torch.no_grad():
        model(images(model, (15, 17), torch.float64))
        for number, twin in enumerate(twins):
            ways = list(partitions(twin))
            assert (() in ways and all_cuts(twin) in ways) or twin.residual.same_padding
            assert cheapest(twin) in ways
            assert cost(twin, cheapest(twin)) == min(cost(twin, cuts) for cuts in ways)
            for cuts in ways:
                close(twin.pruned(inputs[number]), merge(twin, cuts)(inputs[number]), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_their_rows_say(kind):
    """Run in order, the parts of a block give the same as the block, so a row has no part too many or too few."""
    model, residuals = make(kind)
    inside = [residual for residual in residuals if residual.path == residual.block]
    check_parts(model, inside, lambda: model(images(model, (15, 17), torch.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_fading(kind):
    """At fade 0 the model is the original bit for bit, at 1 the twins; between them it is their mixture."""
    model, residuals = make(kind)
    x = images(model, (15, 17), torch.float32)
    with torch.no_grad():
        original = model(x).logits
        twins = install_twins(model, residuals[:1])
        assert torch.equal(model(x).logits, original)
        seen = []
        twins[0].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        set_fades(twins, [1])
        model(x)
        assert torch.equal(seen[-1][1], twins[0].pruned(seen[-1][0]))
        set_fades(twins, [0.25])
        model(x)
        inner, output = seen[-1]
        close(output, 0.75 * twins[0].original(inner) + 0.25 * twins[0].pruned(inner), 1e-5)
        assert not torch.equal(model(x).logits, original)
        remove_twin(model, twins[0])
        assert torch.equal(model(x).logits, original)
        assert not [name for name, _ in model.named_parameters() if "original" in name]


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit"])
def test_gradients_reach_shared_weights_through_both(kind):
    model, residuals = make(kind)
    x = images(model, (15, 17), torch.float32)
    twins = install_twins(model, residuals)
    weight = twins[0].matrices[0].weight
    gradients = []
    for fade in (0.0, 1.0, 0.5):
        set_fades(twins, [fade] * len(twins))
        model.zero_grad()
        model(x).logits.square().sum().backward()
        gradients.append(weight.grad.clone())
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert len({float(gradient.sum()) for gradient in gradients}) == 3
    fade = torch.tensor(0.5, requires_grad=True)
    twins[0].fade = fade
    model(x).logits.square().sum().backward()
    assert float(fade.grad.abs()) > 0


def test_a_copy_shares_as_the_model_does():
    model, residuals = make("convnext")
    install_twins(model, residuals)
    copy = deepcopy(model)
    twins = [module for module in copy.modules() if type(module).__name__ == "Twin"]
    own = {id(value) for value in model.parameters()}
    for twin in twins:
        inside = {id(value) for value in twin.original.parameters()}
        assert all(id(matrix.weight) in inside for matrix in twin.matrices)
        assert all(id(value) in inside for value in twin.residual.branch if isinstance(value, nn.Parameter))
        assert not inside & own
    set_fades(twins, [1] * len(twins))
    x = images(model, (16, 16), torch.float32)
    with torch.no_grad():
        before = copy(x).logits
        twins[0].original.dwconv.weight.mul_(2)
        assert not torch.equal(copy(x).logits, before)
        set_fades(twins, [0] * len(twins))
        assert torch.equal(model(x).logits, make("convnext")[0](x).logits)


def test_recalibrating_touches_running_statistics_only():
    model, residuals = make("resnet")
    twins = install_twins(model, residuals)
    set_fades(twins, [1] + [0] * (len(twins) - 1))
    model.train()
    x = images(model, (15, 17), torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momenta = [norm.momentum for norm in batch_norms(model)]
    with recalibrating(model):
        assert not model.training
        for part in x.split(1):
            model(part)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    first = twins[0].residual.path
    assert any(name.startswith(f"{first}.norms") for name in changed)
    assert not any(name.startswith(f"{first}.original") for name in changed), "the original did not run"
    second = twins[1].residual.path
    assert not any(name.startswith(f"{second}.norms") for name in changed), "this twin did not run"
    assert any(name.startswith(f"{second}.original") for name in changed)
    assert [norm.momentum for norm in batch_norms(model)] == momenta and model.training
    # The statistics are those of the batches: the mean over both.
    stem = model.resnet.embedder.embedder
    with torch.no_grad():
        outputs = torch.cat([stem.convolution(part) for part in x.split(1)])
    torch.testing.assert_close(stem.normalization.running_mean, outputs.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_recalibrating_leaves_norms_without_statistics_alone():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4))
    with recalibrating(model):
        model(torch.randn(4, 2, 3, 3))
    assert int(model[2].num_batches_tracked) == 1


class Chain(nn.Module):
    """A block of a user: a random chain of layers, with a shortcut or without."""

    def __init__(self, rng: random.Random):
        super().__init__()
        channels, layers, self.outer = 4 * rng.randint(1, 2), [], rng.choice([None, nn.ReLU()])
        first, self.stride = channels, (1, 1)
        shapes = lambda: rng.choice([None, nn.BatchNorm2d, "group", "layer"])
        for _ in range(rng.randint(1, 3)):
            layers += self.norm(shapes(), channels)
            out = 4 * rng.randint(1, 2)
            kernel = (rng.choice([1, 3, 5]), rng.choice([1, 3]))
            dilation, stride = (rng.randint(1, 2), rng.randint(1, 2)), rng.choice([(1, 1), (1, 1), (2, 1), (2, 2)])
            padding = tuple((size - 1) // 2 * step for size, step in zip(kernel, dilation, strict=True))
            groups = rng.choice([1, 2, 4]) if rng.random() < 0.7 else 1
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, rng.random() < 0.5))
            self.stride = (self.stride[0] * stride[0], self.stride[1] * stride[1])
            channels = out
            layers += self.norm(shapes(), channels)
            layers += [rng.choice([nn.ReLU(), nn.GELU(), nn.Dropout(0.1)])]
        self.branch = nn.ModuleList(layers)
        self.shortcut, kind = None, rng.choice(["none", "input", "conv"])
        if kind == "conv" or (kind == "input" and (self.stride != (1, 1) or first != channels)):
            self.shortcut = nn.ModuleList([nn.Conv2d(first, channels, 1, self.stride), nn.BatchNorm2d(channels)])
        elif kind == "input":
            self.shortcut = nn.ModuleList()

    def norm(self, kind, channels):
        if kind is None:
            return []
        made = {"group": lambda: nn.GroupNorm(2, channels), "layer": lambda: nn.LayerNorm(channels)}
        return [made[kind]() if kind in made else kind(channels)]

    def forward(self, x):
        y = x
        for layer in self.branch:
            y = layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if isinstance(layer, nn.LayerNorm) else layer(y)
        if self.shortcut is not None:
            for layer in self.shortcut:
                x = layer(x)
            y = x + y
        return y if self.outer is None else self.outer(y)

    def residual(self):
        shortcut = None if self.shortcut is None else tuple(self.shortcut)
        return Residual("0", tuple(self.branch), shortcut, self.outer)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 150))])
def test_random_chains(seed):
    """Every partition of every twin merges exactly, and the parts of a block are the block."""
    for number in range(4):
        rng = random.Random(100 * seed + number)
        torch.manual_seed(seed)
        model = nn.Sequential(Chain(rng)).eval()
        shake(model)
        channels = next(layer for layer in model[0].branch if isinstance(layer, nn.Conv2d)).in_channels
        size = (rng.randint(12, 17), rng.randint(12, 17))
        x = torch.randn(2, channels, *size, dtype=torch.float64)
        with torch.no_grad():
            check_parts(model, [model[0].residual()], lambda model=model, x=x: model(x.float()))
            twins = install_twins(model.double(), [model[0].residual()], rng.choice([0, None]))
            shake(twins[0].norms)
            shake(twins[0].shortcut_norms)
            twins[0].eval()
            assert twins[0].original(x).shape == twins[0].pruned(x).shape
            for cuts in partitions(twins[0]):
                merged = merge(twins[0], cuts)
                close(twins[0].pruned(x), merged(x), 1e-10)
                close(twins[0].pruned(x).float(), deepcopy(merged).float()(x.float()), 1e-4)


class SameChain(nn.Module):
    """A block whose only wide convolution pads as TensorFlow's SAME, by itself."""

    def __init__(self, kernel, stride, shortcut):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, kernel, stride, groups=8), nn.Conv2d(8, 4, 1)]
        )
        self.shortcut = nn.ModuleList([nn.Conv2d(4, 4, 1, stride)]) if shortcut else None

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(pad_same(y, layer)) if isinstance(layer, nn.Conv2d) else layer(y)
        return y if self.shortcut is None else y + self.shortcut[0](x)


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 1), (2, 2), (5, 2), (1, 2)])
def test_same_padding_depends_on_the_size(kernel, stride, shortcut):
    """A block merged at one size of images is right at every other."""
    torch.manual_seed(0)
    model = nn.Sequential(SameChain(kernel, stride, shortcut)).double().eval()
    shake(model)
    block = model[0]
    residual = Residual(
        "0", tuple(block.layers), tuple(block.shortcut) if shortcut else None, same_padding=True
    )  # fmt: skip
    (twin,) = install_twins(model, [residual])
    with torch.no_grad():
        check = torch.randn(1, 4, 9, 12, dtype=torch.float64)
        assert twin.pruned(check).shape == twin.original(check).shape
        for cuts in partitions(twin):
            merged = merge(twin, cuts)
            for size in ((9, 12), (12, 9), (8, 8), (7, 7)):
                x = torch.randn(1, 4, *size, dtype=torch.float64)
                close(twin.pruned(x), merged(x), 1e-10)


def test_tokens_with_every_norm():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
            self.middle, self.scale = TokenBatchNorm(12), nn.Parameter(torch.rand(6))

        def forward(self, x):
            return x + self.scale * self.down(nn.functional.gelu(self.middle(self.up(self.norm(x)))))

    torch.manual_seed(0)
    model = nn.Sequential(Block()).double().eval()
    shake(model)
    block = model[0]
    parts = (block.norm, block.up, block.middle, nn.GELU(), block.down, block.scale)
    (twin,) = install_twins(model, [Residual("0", parts, (), tokens=True)])
    shake(twin.norms)
    twin.eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        for cuts in partitions(twin):
            close(twin.pruned(x), merge(twin, cuts)(x), 1e-10)
        assert isinstance(merge(twin, ()), nn.Linear), "the shortcut folds into one linear"


def test_a_kernel_limit_drops_outer_taps():
    """The layers beside the largest kernel shrink to their centre until the merged kernel is small enough."""
    sizes = {}
    for kernel in (0, 5, 3, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)))).eval()
        (twin,) = install_twins(model, [Residual("0", tuple(model[0]))], kernel)
        with torch.no_grad():
            x = torch.randn(1, 2, 9, 9)
            assert twin.pruned(x).shape == twin.original(x).shape
            merged = merge(twin, ())
        sizes[kernel] = merged.kernel_size
    assert sizes == {0: (7, 7), 5: (5, 5), 3: (3, 3), 1: (3, 3)}


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        ([nn.Conv2d(2, 2, 3), nn.MaxPool2d(2)], {}, "MaxPool2d in its branch cannot be merged"),
        ([nn.Conv2d(2, 2, 3), nn.PReLU()], {}, "PReLU in its branch"),
        ([nn.Conv2d(2, 2, 3), nn.GLU(1)], {}, "GLU in its branch"),
        ([nn.Conv2d(2, 2, 3), nn.Softmax(1)], {}, "Softmax in its branch"),
        ([nn.ReLU()], {}, "no convolution or linear layer"),
        ([nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")], {}, "padding_mode 'reflect'"),
        ([nn.Conv2d(2, 2, 3)], {"tokens": True}, "a convolution in a block of tokens"),
        ([nn.LayerNorm((2, 8, 8)), nn.Conv2d(2, 2, 1)], {}, "a LayerNorm over"),
        ([nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)], {"same_padding": True}, "cannot pad once"),
        ([nn.Conv2d(2, 2, 1)], {"shortcut": (nn.AvgPool2d(2),)}, "a shortcut that cannot fold, with AvgPool2d"),
        ([nn.Conv2d(2, 2, 1)], {"shortcut": (nn.Conv2d(2, 2, 3, padding=1),)}, "a shortcut that cannot fold"),
        ([nn.Conv2d(2, 2, 1)], {"shortcut": (nn.Conv2d(2, 2, 1), nn.ReLU())}, "a shortcut that cannot fold, with ReLU"),
    ],
)
def test_what_cannot_merge(parts, options, words):
    with pytest.raises(UsageError, match=words) as error:
        Residual("blocks.3", tuple(parts), **options)
    assert "blocks.3" in str(error.value) and "\n" not in str(error.value)


def test_a_family_that_does_not_say_what_its_blocks_are():
    model = make("vit")[0]
    with pytest.raises(UsageError, match="the row of vit in families.yaml .* known for convnext, deit, mobilenet_v2, "):
        find_residuals(model, SimpleNamespace(family=SimpleNamespace(residual=None), blocks=2))


@pytest.mark.parametrize("convs", [[(5, 2), (4, 1)], [(3, 0), (3, 0)]])
def test_taps_that_cannot_be_left_out(convs):
    """An even kernel has no centre, and a kernel without padding cannot shrink and keep the size."""
    layers = [nn.Conv2d(2, 2, *options[:1], padding=options[1]) for options in convs]
    model = nn.Sequential(nn.Sequential(*layers))
    with pytest.raises(UsageError, match="give kernel: 0"):
        install_twins(model, [Residual("0", tuple(layers))], 3)
    install_twins(model, [Residual("0", tuple(layers))], 0)
