"""The layers that the perception models share."""

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

from jettison.core.errors import UsageError
from jettison.domains.perception.layers.backbone import BLOCKS, LINEARS, build_backbone
from jettison.formats.onnx_file import check_onnx, write_onnx
from jettison.graph.anatomy import Family
from jettison.graph.own_models import Outputs
from jettison.graph.skeleton import read_anatomy

TINY = {"resnet": [8, 8, 16, 16], "bottleneck": [16, 16, 32, 32], "swin": [8, 16, 32, 64]}
ONES = [1, 1, 1, 1]


class Alone(nn.Module):
    """A model that is a backbone alone. It returns the last map."""

    main_input_name, config = "packed", None

    def __init__(self, kind):
        super().__init__()
        self.backbone = build_backbone(kind, TINY[kind], ONES)
        self.head = nn.Linear(self.backbone.channels[-1], 2)

    def forward(self, packed):
        return Outputs(self.head(self.backbone(packed)[-1].mean((-2, -1))))


@pytest.mark.parametrize("kind", TINY)
class TestBackbones:
    def test_maps_have_the_stated_channels_and_strides(self, kind):
        torch.manual_seed(0)
        backbone = build_backbone(kind, TINY[kind], ONES).eval()
        for height, width in ((64, 96), (40, 100)):
            maps = backbone(torch.rand(2, 3, height, width))
            for stride, channels, features in zip((4, 8, 16, 32), backbone.channels, maps, strict=True):
                assert features.shape == (2, channels, -(-height // stride), -(-width // stride))

    def test_the_image_is_normalized_inside(self, kind):
        backbone, seen = build_backbone(kind, TINY[kind], ONES).eval(), []
        backbone.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        backbone(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
        assert seen[0].abs().max() < 1e-6

    def test_without_weights_it_has_blocks_and_roles(self, kind):
        with init_empty_weights():
            model = Alone(kind)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert not model.backbone.mean.is_meta
        row = {path: (role,) for path, role in LINEARS.items()}
        family = Family("jettison_alone", " ".join(BLOCKS), row, {}, ends=("head",), domain="perception")
        anatomy = read_anatomy(model, family)
        assert anatomy.blocks == 4
        expected = {"q", "k", "v", "o", "up", "down"} if kind == "swin" else {"conv"}
        assert {linear.role for linear in anatomy if linear.block is not None} == expected
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(anatomy.linears) == len(matrices), "each matrix has a role"

    def test_onnx_computes_the_same(self, kind, tmp_path):
        pytest.importorskip("onnxruntime")
        torch.manual_seed(0)
        model, image = Alone(kind).eval(), torch.rand(1, 3, 40, 72)
        write_onnx(model, image, tmp_path / "m.onnx")
        assert check_onnx(tmp_path / "m.onnx", model, torch.rand(1, 3, 40, 72)) < 1e-4


def test_resnet_18_has_its_parameters():
    """ResNet-18 has 11,689,512 parameters, of which its classifier has 513,000 (arXiv:1512.03385)."""
    with init_empty_weights():
        backbone = build_backbone("resnet", [64, 128, 256, 512], [2, 2, 2, 2])
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 11_689_512 - 513_000


@pytest.mark.parametrize(
    ("kind", "widths", "depths", "words"),
    [
        ("resnot", [8] * 4, ONES, "did you mean 'resnet'"),
        ("resnet", [8] * 3, ONES, r"widths of a backbone are \[8, 8, 8\]: four"),
        ("resnet", [8] * 4, [1, 0, 1, 1], r"depths of a backbone are \[1, 0, 1, 1\]"),
        ("bottleneck", [8, 8, 10, 8], ONES, "multiples of 4"),
        ("swin", [8, 16, 24, 48], ONES, "twice the one before"),
    ],
)
def test_backbones_that_cannot_be_are_refused(kind, widths, depths, words):
    with pytest.raises(UsageError, match=words):
        build_backbone(kind, widths, depths)
