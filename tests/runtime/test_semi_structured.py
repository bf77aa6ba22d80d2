"""How pruned weights run: the cost model, semi-structured tensors, compressed-tensors."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from torch import nn

from jettison.core.errors import UsageError
from jettison.devices.device import find_device
from jettison.encodings.pattern import Pattern
from jettison.encodings.uniform import UniformGrid
from jettison.formats.runtimes import find_runtime
from jettison.graph.folder import open_shape
from jettison.planning.cost import Setting, planned, predict, stored_bits
from jettison.planning.groups import find_units
from jettison.recipe.recipe import load_recipe
from jettison.runtime import semi_structured
from jettison.runtime.semi_structured import use_semi_structured

TWO_OF_FOUR = Pattern.parse("2:4")
BLOCKS = ["q", "k", "v", "o", "gate", "up", "down"]


def recipe(*steps, pattern="2:4"):
    """Return a recipe that prunes to ``pattern`` before the other steps."""
    return load_recipe({"steps": [{"prune": {"method": "wanda", "pattern": pattern}}, *steps]})


def quantize(bits, **options):
    """Return a step that quantizes all linears of the blocks."""
    return {"quantize": {"method": "gptq", "bits": bits} | options, "where": {"role": BLOCKS}}


def test_bits_per_weight():
    assert TWO_OF_FOUR.packed_bits(UniformGrid(4, 128)) == 3.25
    assert TWO_OF_FOUR.packed_bits(UniformGrid(8, 128)) == 5.25
    assert TWO_OF_FOUR.packed_bits(None) == 9.0
    for pattern, grid in (
        (Pattern(0.5), UniformGrid(4)),
        (Pattern.parse("4:8"), UniformGrid(4)),
        (TWO_OF_FOUR, UniformGrid(2)),
    ):
        assert pattern.packed_bits(grid) is None
    assert TWO_OF_FOUR.packed_bits(UniformGrid(4, 128, symmetric=False)) is None


@pytest.mark.parametrize(
    ("steps", "setting", "bits"),
    [
        ([quantize(4)], Setting(), 3.25),
        ([quantize(8)], Setting(), 5.25),
        ([quantize(4)], Setting(runtime=find_runtime("jettison")), 3.25),
        ([quantize(4)], Setting(runtime=find_runtime("vllm")), 4.125),
        ([quantize(3)], Setting(), 3.125),
        ([], Setting(), 16.0),
        ([], Setting(semi_structured=True), 9.0),
    ],
    ids=str,
)
def test_the_cost_model_counts_what_runs(steps, setting, bits):
    shape = open_shape("qwen3-1.7b")
    units = find_units(shape.anatomy)
    assert {unit.role for unit in units if unit.block == 0} == {"qkv", "o", "gate_up", "down"}
    for unit in units:
        if unit.block == 0:
            assert stored_bits(unit, planned(unit, recipe(*steps), setting.runtime, setting.semi_structured)) == bits
        elif unit.role == "head":  # the recipe does not quantize the head
            assert planned(unit, recipe(*steps), setting.runtime, setting.semi_structured).bits == 16


def test_a_sparse_model_decodes_faster_and_takes_less_memory():
    shape, device = open_shape("qwen3-1.7b"), find_device("strix-halo")
    sparse = predict(shape, recipe(quantize(4)), device)
    dense = predict(shape, load_recipe({"steps": [quantize(4)]}), device)
    assert sparse.memory < dense.memory and sparse.seconds < dense.seconds
    assert sparse.memory == predict(shape, recipe(quantize(4)), device, Setting()).memory
    unstructured = load_recipe({"steps": [{"prune": {"method": "wanda", "sparsity": 0.5}}, quantize(4)]})
    assert predict(shape, unstructured, device).memory == dense.memory


def test_compressed_tensors_names_sparse_formats_and_reads_none():
    """No sparse format can be read, so pruned weights are stored dense, or packed with their zeros.

    If this test fails, one of the sparse formats can be used instead.
    """
    for name in ("sparse-24-bitmask", "marlin-24", "sparse-bitmask"):
        with pytest.raises((KeyError, ValueError)):
            BaseCompressor.get_value_from_registry(name)
    assert BaseCompressor.get_value_from_registry("pack-quantized")


class TestSemiStructured:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64), nn.Linear(64, 48)).bfloat16()
        sparse = model[0].weight.detach().unflatten(1, (-1, 4))
        sparse[..., :2] = 0
        return model

    def test_without_a_gpu_it_stays_dense_or_refuses(self, model, monkeypatch):
        printed = []
        monkeypatch.setattr(semi_structured, "say", printed.append)
        before = model[0].weight
        assert set(use_semi_structured(model)) == {"0", "1", "2"}
        assert model[0].weight is before
        assert "an NVIDIA GPU is needed" in printed[0]
        with pytest.raises(UsageError, match="the model is on cpu; an NVIDIA GPU is needed"):
            use_semi_structured(model, fallback=False)

    def test_only_what_fits_is_turned(self, model, monkeypatch):
        monkeypatch.setattr(semi_structured, "_unable", lambda model: "")
        turned = []
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: turned.append(w.shape) or w)
        reasons = use_semi_structured(model)
        assert turned == [torch.Size([64, 128])]
        assert reasons == {"1": "it is not 2:4", "2": "it is 48 x 64; multiples of 32 x 64 are needed"}
        assert set(use_semi_structured(model.float()).values()) == {"it is float32; float16 or bfloat16 is needed"}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    def test_on_a_gpu_it_computes_the_same(self, model):
        model = model.cuda()
        x = torch.randn(8, 128, device="cuda", dtype=torch.bfloat16)
        expected = model[0](x)
        assert set(use_semi_structured(model, fallback=False)) == {"1", "2"}
        assert torch.allclose(model[0](x), expected, atol=2e-2)
