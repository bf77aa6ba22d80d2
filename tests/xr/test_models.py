"""The unit models of XRBench as modules, the recipes for them, and their costs."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.devices.device import find_device
from jettison.domains.perception.xr.catalog import model_names
from jettison.domains.perception.xr.models import NATIVE, native_input, native_model
from jettison.graph.modules import QuantizedLinear
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.xr.costs import layer_table
from jettison.xr.definitions import find_scenario
from jettison.xr.operators import count_operators, energy_of, operators_cost, table_operators
from jettison.xr.simulator import simulate
from jettison.xr.sources import find_costs
from jettison.xr.variants import Variant, agreement, open_variant

# GMAC in the cost tables, for the networks whose convolutions are (almost all) dense, as the tables assume.
DENSE = {"HT": 3.72, "ES": 1.04, "SR": 9.66, "AS": 0.354, "DR": 16.8}
OUT = {"KD": (1, 12), "ES": (1, 4, 40, 25), "GE": (1, 3), "AS": (1, 11, 160), "DR": (1, 57, 228), "DE": (1, 64, 64)}


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_every_model_runs(name):
    model, frame = native_model(name, "tiny"), native_input(name, "tiny")
    with torch.no_grad():
        output, repeated, other = model(frame), model(frame), model(native_input(name, "tiny", seed=1))
    tensors = list(output) if isinstance(output, tuple) else [output]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    assert name not in OUT or tensors[0].shape == OUT[name]
    same = repeated if isinstance(repeated, tuple) else (repeated,)
    assert all(torch.equal(a, b) for a, b in zip(tensors, same, strict=True))
    others = other if isinstance(other, tuple) else (other,)
    assert any(not torch.allclose(a, b) for a, b in zip(tensors, others, strict=True)), "the frame matters"


def test_there_are_eleven():
    assert sorted(NATIVE) == sorted(model_names()) and len(NATIVE) == 11


@pytest.mark.parametrize("name", sorted(DENSE))
def test_dense_models_do_the_work_of_the_tables(name):
    assert sum(layer.macs for layer in layer_table(name)) / 1e9 == pytest.approx(DENSE[name], rel=0.01)
    module, frame = (
        native_model(name, "tiny" if name == "SR" else "full"),
        native_input(name, "tiny" if name == "SR" else "full"),
    )
    macs = sum(operator.macs for operator in count_operators(lambda: module(frame))) / 1e9
    if name == "SR":  # tiny has 1/4 width and 1/4 time, so 1/64 MACs, plus a linear
        macs = (macs - 512 * 128 * 32 / 1e9) * 64
    assert macs == pytest.approx(DENSE[name], rel=0.15)


def test_seeds_and_weights(tmp_path):
    a, b, c = (native_model("KD", "tiny", seed) for seed in (0, 0, 1))
    equal = lambda x, y: all(torch.equal(p, q) for p, q in zip(x.parameters(), y.parameters(), strict=True))
    assert equal(a, b) and not equal(a, c)
    save_file(c.state_dict(), tmp_path / "kd.safetensors")
    assert equal(native_model("KD", "tiny", weights=tmp_path / "kd.safetensors"), c)
    with pytest.raises(JettisonError, match="do not fit model 'KD' of size 'small'"):
        native_model("KD", "small", weights=tmp_path / "kd.safetensors")
    with pytest.raises(UsageError, match="unknown size 'huge'"):
        native_model("KD", "huge")


class TestRecipes:
    @pytest.mark.parametrize("name", ["ES", "GE", "DE", "OD"])
    def test_folding_changes_nothing(self, name):
        variant = Variant(name, size="tiny", recipe="folded")
        folded, plain = open_variant(variant), open_variant(Variant(name, size="tiny"))
        norms = lambda run: sum(isinstance(module, nn.BatchNorm2d) for module in run.module.modules())
        assert norms(folded) == 0 < norms(plain)
        assert agreement(variant) > 0.9999

    def test_a_recipe_of_jettison(self):
        """Recipes w8 (rounding) and w4 (GPTAQ on statistics of random frames) pack every linear."""
        agreements = {}
        for recipe in ("w8", "w4"):
            variant = Variant("GE", size="tiny", recipe=recipe)
            modules = open_variant(variant).module.modules()
            linears = [module for module in modules if isinstance(module, nn.Linear | QuantizedLinear)]
            assert len(linears) == 2 and all(isinstance(linear, QuantizedLinear) for linear in linears)
            agreements[recipe] = agreement(variant)
        assert 0.9 < agreements["w4"] < agreements["w8"] and agreements["w8"] > 0.999

    def test_half_and_bfloat16(self):
        half = count_operators(open_variant(Variant("DE", size="small", recipe="half")))
        whole = count_operators(open_variant(Variant("DE", size="small")))
        macs = lambda operators: sum(operator.macs for operator in operators)
        assert 0.2 < macs(half) / macs(whole) < 0.5
        narrow = count_operators(open_variant(Variant("DE", size="tiny", recipe="bfloat16")))
        assert {operator.kind for operator in narrow if operator.macs} == {"fp16"}
        assert energy_of(narrow) < energy_of(count_operators(open_variant(Variant("DE", size="tiny"))))

    @pytest.mark.parametrize(
        ("variant", "message"),
        [
            (Variant("ES", size="tiny", recipe="w8"), "no linear layers"),
            (Variant("SR", size="tiny", recipe="half"), "only pictures"),
            (Variant("HT", size="small", recipe="half"), "as small as it can be"),
            (Variant("ES", size="tiny", recipe="folded+fast"), "unknown part 'fast' of recipe 'folded\\+fast'"),
            (Variant("ES", "nothing.bin"), "unknown source 'nothing.bin'"),
            (Variant("ES", size="giant"), "unknown size 'giant'"),
            (Variant("ES", nn.ReLU()), "an nn.Module needs inputs"),
        ],
    )
    def test_what_does_not_go(self, variant, message):
        with pytest.raises(UsageError, match=message):
            open_variant(variant)

    def test_a_module_of_ones_own(self):
        module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        run = open_variant(Variant("mine", module, recipe="w8", inputs=torch.randn(1, 64)))
        assert run().shape == (1, 8) and isinstance(run.module[0], QuantizedLinear)
        assert isinstance(module[0], nn.Linear), "the original is left alone"
        assert sum(operator.macs for operator in count_operators(run)) == 64 * 32 + 32 * 8

    def test_a_checkpoint(self, tiny, tmp_path):
        """A packed language model can be a unit model; one inference reads 32 tokens."""
        compress(tiny("llama"), load_recipe("w8", ["quantize.group_size=32"]), tmp_path / "w8")
        run = open_variant(Variant("mine", str(tmp_path / "w8")))
        operators = count_operators(run)
        assert run().shape[:2] == (1, 32) and energy_of(operators) > 0 and any(operator.macs for operator in operators)

    def test_onnx(self, tmp_path):
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        from onnx import TensorProto, helper

        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [value("x")], [value("y")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        onnx.save(model, tmp_path / "relu.onnx")
        run = open_variant(Variant("mine", str(tmp_path / "relu.onnx")))
        assert run.inputs.shape == (1, 4) and (run()[0] == run.inputs.relu().numpy()).all()
        with pytest.raises(UsageError, match="a file is run as it is"):
            open_variant(Variant("mine", str(tmp_path / "relu.onnx"), recipe="folded"))
        (tmp_path / "bad.onnx").write_bytes(b"nothing")
        with pytest.raises(JettisonError, match="cannot open"):
            open_variant(Variant("mine", str(tmp_path / "bad.onnx")))


class TestRoofline:
    def test_operators_by_hand(self):
        """A linear of 4 x 8 has 32 MACs and moves 8 inputs, 32 weights, 4 biases and 4 outputs of 4 bytes."""
        layer, x = nn.Linear(8, 4), torch.randn(1, 8)
        (operator,) = [row for row in count_operators(lambda: layer(x)) if row.macs]
        assert (operator.macs, operator.moved, operator.kind) == (32, 4 * (8 + 32 + 4 + 4), "fp32")
        assert operator.energy_mj == pytest.approx(1e-9 * (32 * 4.6 + 192 * 160))
        device = find_device("raspberry-pi-5")
        assert operator.seconds(device) == max(192 / device.bandwidth, 64 / device.peak("fp32")) + device.overhead

    def test_cost_has_layers(self):
        cost = operators_cost(table_operators("ES"), find_device("raspberry-pi-5"))
        assert len(cost.layers) == 42 and cost.layers[-1] == 1.0 and list(cost.layers) == sorted(cost.layers)

    def test_workloads(self):
        """The tables count depthwise convolutions as dense, so their cost of GE is far above that of the network."""
        scenario = find_scenario("vr-gaming")
        costs = {
            workload: find_costs(scenario, devices=["raspberry-pi-5"], workload=workload, size="tiny")
            for workload in ("native", "xrbench-v0.1")
        }
        assert costs["xrbench-v0.1"].rows[0]["GE"].latency_ms > 3 * costs["native"].rows[0]["GE"].latency_ms
        assert simulate(scenario, costs["native"], preempt=True).frames
        for options, message in (
            ({"devices": ["raspberry-pi-5"], "workload": "other"}, "unknown workload 'other'"),
            ({"devices": ["raspberry-pi-5"], "accelerator": "A"}, "one of them"),
            ({"devices": ["nowhere"]}, "unknown device"),
        ):
            with pytest.raises(UsageError, match=message):
                find_costs(scenario, **options)
