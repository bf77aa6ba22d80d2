"""Image classifiers as ONNX files: the file computes what the model computes, and packed weights stay small."""

import sys

import pytest
import torch
from products import random_weight
from torch import nn
from transformers import AutoModelForImageClassification

from jettison import compress, load
from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.formats import onnx_file
from jettison.formats.onnx_file import check_onnx, open_onnx, run_onnx, write_onnx
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.graph.folding import logits_of
from jettison.graph.modules import PackedConv2d, PackedLinear, tile_linears

FAMILIES = {"resnet": (37, 41), "mobilenet_v2": (37, 41), "convnext": (33, 46), "deit": (32, 32), "vit": (32, 32)}
GRIDS = {
    "w8": UniformGrid(8, -1),
    "groups": UniformGrid(8, 8),
    "asymmetric": UniformGrid(8, 8, symmetric=False),
    "four bits": UniformGrid(4, 8, symmetric=False),
}


def packed_model(grid) -> nn.Module:
    """Return a small classifier with a packed convolution and packed linears, on images of 10 x 9 pixels."""
    torch.manual_seed(0)
    like = nn.Conv2d(16, 8, 3, stride=2, padding=1, groups=2)
    conv = PackedConv2d(grid, like, **random_weight(grid, 8, 72).parts(), bias=None)
    first, second = random_weight(grid, 40, 8, seed=1), random_weight(grid, 3, 200, seed=2)
    linears = PackedLinear.of(first, torch.randn(40)), PackedLinear.of(second)
    shape = nn.Flatten(2), lambda x: x.transpose(1, 2)[:, :5]  # (images, 5, 8)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), conv, nn.BatchNorm2d(8), shape[0], _Call(shape[1]), linears[0],
                          nn.ReLU(), nn.Flatten(), linears[1]).eval()  # fmt: skip
    model[2].running_var.uniform_(0.5, 2)
    model[2].running_mean.uniform_(-1, 1)
    return model


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@torch.no_grad()
@pytest.mark.parametrize("grid", [*GRIDS.values(), ValueTable("nf4", 8)], ids=str)
def test_stored_weights_are_those_of_the_model(grid):
    """What is traced computes the same as the model; this needs no onnx."""
    model, pixels = packed_model(grid), torch.randn(2, 3, 10, 9)
    prepared, _ = onnx_file._prepared(model, pixels[:1])
    expected = model(pixels)
    assert (prepared(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    stored = [tensor.dtype for name, tensor in prepared.named_buffers() if name.endswith("codes")]
    assert stored == ([torch.int8] * 3 if isinstance(grid, UniformGrid) else [])
    assert torch.equal(prepared[5].weight, model[5].weight), "codes and scales give exactly the packed weight"


def test_tiled_linears_are_packed_again():
    model = packed_model(GRIDS["groups"])
    tile_linears(model)
    prepared, _ = onnx_file._prepared(model, torch.randn(1, 3, 10, 9))
    assert torch.equal(prepared[5].weight, packed_model(GRIDS["groups"])[5].weight)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_extra_is_named(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    call = {
        "onnx": lambda: write_onnx(nn.Identity(), torch.zeros(1, 3, 4, 4), tmp_path / "m.onnx"),
        "onnxruntime": lambda: open_onnx(tmp_path / "m.onnx"),
    }[package]
    with pytest.raises(UsageError, match=rf"{package} is not installed: pip install 'jettison\[onnx\]'"):
        call()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, "required", lambda package: None)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "MOST_BYTES", 100)
        with pytest.raises(UsageError, match="the weights have 112 bytes; an ONNX file takes at most 100"):
            write_onnx(nn.Conv2d(3, 7, 1).requires_grad_(False), torch.zeros(1, 3, 3, 3), tmp_path / "m.onnx")

    def fail(*_, **__):
        raise RuntimeError("no such operator\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(JettisonError, match="cannot be written as ONNX: no such operator$"):
        write_onnx(nn.Flatten(), torch.zeros(1, 3, 3, 3), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.engines
class TestInOnnxRuntime:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("recipe", ["dense", "w8"])
    def test_families(self, tiny, tmp_path, family, recipe):
        """The file is written with one image and takes three; with w8 it is smaller."""
        folder, pixels = tiny(family), torch.randn(3, 3, *FAMILIES[family])
        if recipe == "w8":
            compress(folder, "w8", tmp_path / "w8")
            folder = tmp_path / "w8"
        model = load(folder, exact=True, dtype=torch.float32).model
        write_onnx(model, pixels[:1], tmp_path / "m.onnx")
        largest = float(logits_of(model, pixels).detach().abs().max())
        assert check_onnx(tmp_path / "m.onnx", model, pixels) <= 1e-5 * largest
        if recipe == "w8":
            write_onnx(load_dense(ModelFolder(tiny(family))), pixels[:1], tmp_path / "dense.onnx")
            sizes = [(tmp_path / name).stat().st_size for name in ("m.onnx", "dense.onnx")]
            assert sizes[0] < 0.7 * sizes[1]

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", ["vit", "deit"])
    def test_attention(self, tiny, tmp_path, family, attention):
        model = AutoModelForImageClassification.from_pretrained(tiny(family), attn_implementation=attention)
        pixels = torch.randn(3, 3, 32, 32)
        write_onnx(model, pixels[:1], tmp_path / "m.onnx")
        assert check_onnx(tmp_path / "m.onnx", model, pixels) < 1e-5

    @pytest.mark.parametrize("grid", GRIDS.values(), ids=str)
    def test_packed_weights(self, tmp_path, grid):
        import onnx

        model, pixels = packed_model(grid), torch.randn(3, 3, 10, 9)
        write_onnx(model, pixels[:1], tmp_path / "m.onnx")
        largest = float(model(pixels).detach().abs().max())
        assert check_onnx(tmp_path / "m.onnx", model, pixels) <= 1e-5 * largest
        file = onnx.load(tmp_path / "m.onnx")
        onnx.checker.check_model(file, full_check=True)
        assert [node.op_type for node in file.graph.node].count("DequantizeLinear") == 3
        assert file.opset_import[0].version == onnx_file.OPSET
        assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "images"
        assert file.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "images"
        assert not any(node.op_type == "BatchNormalization" for node in file.graph.node)

    def test_a_module_of_the_user_stays_as_it_is(self, tmp_path):
        """In training mode, in bfloat16, and with dropout: the file is in eval mode and float32."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten()).bfloat16().train()
        pixels = torch.randn(2, 3, 6, 6)
        write_onnx(model, pixels, tmp_path / "m.onnx")
        assert model.training and model[0].weight.dtype == torch.bfloat16
        model[0].eval()
        assert check_onnx(tmp_path / "m.onnx", model, pixels) < 0.05
        assert [module.training for module in model.modules()] == [True, False, True, True]
        exact = model.float().eval()
        assert check_onnx(tmp_path / "m.onnx", exact, pixels) < 1e-6

    def test_a_difference_is_found(self, tmp_path):
        model, pixels = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 6, 6)
        write_onnx(model, pixels, tmp_path / "m.onnx")
        model[0].bias.data[2] += 0.5
        assert check_onnx(tmp_path / "m.onnx", model, pixels) == pytest.approx(0.5, abs=1e-5)
        model[0].bias.data[2] = float("nan")
        assert check_onnx(tmp_path / "m.onnx", model, pixels) == float("inf")

    def test_what_does_not_open_or_run(self, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"no model")
        for path in (tmp_path / "m.onnx", tmp_path / "absent.onnx"):
            with pytest.raises(JettisonError, match=f"cannot open {path}"):
                open_onnx(path)
        write_onnx(nn.Flatten(), torch.zeros(1, 3, 6, 6), tmp_path / "m.onnx")
        with pytest.raises(JettisonError, match="the ONNX model does not run"):
            run_onnx(open_onnx(tmp_path / "m.onnx"), torch.zeros(1, 3, 6, 7))
