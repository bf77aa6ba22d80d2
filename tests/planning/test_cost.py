"""The cost of a model: the roofline, and all terms that it counts."""

import pytest

from jettison.core.bytesize import parse_bytes
from jettison.core.errors import UsageError
from jettison.devices.device import Device, find_device
from jettison.devices.roofline import Operator, step_cost
from jettison.graph.folder import ModelFolder, open_shape
from jettison.planning.baselines import gain, gate_up_recipe, uniform_recipe
from jettison.planning.cost import Setting, operators, predict, predict_drafted, predict_prefill
from jettison.recipe.recipe import Recipe, load_recipe

FAST = Device("fast", "fast", bandwidth=256e9, memory=128e9, flops={"fp16": 1e18}, cache=0.0, overhead=0.0, sources={})


class TestRoofline:
    def test_bytes_bound_and_arithmetic_bound(self):
        device = Device("d", "d", 1e9, 1e12, {"fp32": 1e12}, 0.0, 1e-6, {})
        read = Operator("read", "a", stored=1e6, moved=1e6, flops=2e6)
        counted = Operator("counted", "b", stored=1e3, moved=1e3, flops=2e9, launches=3)
        cost = step_cost([read, counted], device, tokens=2)
        assert cost.seconds == pytest.approx(1e6 / 1e9 + 2e9 / 1e12 + 4e-6)
        assert (cost.moved, cost.memory) == (1e6 + 1e3, 1e6 + 1e3)
        assert cost.tokens_per_second == pytest.approx(2 / cost.seconds)

    @pytest.mark.parametrize(
        ("context", "expected"), [(0, 27.6), (1024, 25.2), (2048, 23.3), (4096, 20.1), (32768, 6.9)]
    )
    def test_the_gain_of_qwen3_4b(self, context, expected):
        """W4/W2-GateUp over uniform W4, adapter left out: the table reconstructed for arXiv:2606.04238."""
        shape = open_shape("qwen3-4b")
        assert gain(shape, gate_up_recipe(), FAST, Setting(context=context)) == pytest.approx(expected, abs=0.5)

    @pytest.mark.parametrize(("context", "expected"), [(0, 32.1), (4096, 27.1), (32768, 13.0)])
    def test_the_gain_of_llama_8b(self, context, expected):
        shape = open_shape("llama-3.1-8b")
        assert gain(shape, gate_up_recipe(), FAST, Setting(context=context)) == pytest.approx(expected, abs=0.5)


class TestCost:
    def test_scales_and_adapters_are_counted(self, tiny):
        source, device = ModelFolder(tiny("llama")), FAST
        plain = uniform_recipe(4, 32)
        adapted = load_recipe(plain.to_dict() | {"steps": [
            *plain.to_dict()["steps"], {"recover": {"rank": 4, "train": ["lora"]}, "where": {"role": ["up"]}},
        ]})  # fmt: skip
        memory = [predict(source, recipe, device, Setting(context=0)).memory for recipe in (plain, adapted)]
        assert memory[1] - memory[0] == 2 * 4 * (64 + 96) * 2
        weights = sum(linear.weights for linear in source.anatomy if "embed" not in linear.roles)
        rest = source.anatomy.parameters - weights
        assert memory[0] == weights * 4.5 / 8 + 2 * rest

    def test_a_tied_head_is_stored_once_and_read_whole(self):
        shape = open_shape("qwen3-4b")
        table = 151936 * 2560 * 2
        by_role = {op.role: op for op in operators(shape, Recipe("none", ()), Setting(context=0))}
        assert by_role["embed"].stored == table and by_role["head"].stored == 0.0
        assert by_role["head"].moved > table > 1e4 * by_role["embed"].moved
        packed = predict(shape, uniform_recipe(4, 128, head=4), FAST, Setting(context=0))
        dense = predict(shape, uniform_recipe(4, 128, head=16), FAST, Setting(context=0))
        assert packed.memory > dense.memory and packed.moved < dense.moved

    def test_the_cache_grows_with_batch_bits_and_context(self):
        shape = open_shape("llama-3.1-8b")
        memory = lambda **setting: predict(shape, uniform_recipe(4), FAST, Setting(**setting)).memory
        token = 2 * 8 * 128 * 2 * 32  # keys and values, heads, width, bytes, blocks
        assert memory(context=100) - memory(context=0) == 100 * token
        assert memory(context=100, batch=3) - memory(context=0) == 300 * token
        four = 2 * 8 * (128 * 4 + 16) / 8 * 32
        assert memory(context=100, cache_bits=4) - memory(context=0, cache_bits=4) == pytest.approx(100 * four)

    def test_sliding_windows_stop_growing(self):
        shape = open_shape("gpt-oss-20b")
        assert shape.sizes.windows[:3] == (128, float("inf"), 128)
        memory = lambda context: predict(shape, uniform_recipe(4, 32), FAST, Setting(context=context)).memory
        token = 2 * 8 * 64 * 2
        assert memory(1128) - memory(128) == pytest.approx(1000 * token * 12)

    def test_experts_by_those_that_are_used(self):
        shape = open_shape("gpt-oss-20b")
        down = lambda **setting: next(
            op for op in operators(shape, uniform_recipe(4, 32), Setting(context=0, **setting))
            if op.role == "expert down"
        )  # fmt: skip
        one, eight = down(), down(batch=8)
        assert one.moved == pytest.approx(one.stored * 4 / 32, rel=0.01)
        assert eight.moved == pytest.approx(one.stored * (1 - (1 - 4 / 32) ** 8), rel=0.02)
        assert eight.flops == 8 * one.flops == 8 * 2 * 4 * 2880 * 2880

    def test_reading_a_prompt_is_bound_by_arithmetic(self):
        shape, device = open_shape("qwen3-4b"), find_device("strix-halo")
        cost = predict_prefill(shape, uniform_recipe(4), device, Setting(context=2048))
        weights = sum(linear.weights for linear in shape.anatomy if linear.block is not None)
        least_time = 2 * weights * 2048 / device.peak()
        assert least_time < cost.seconds < 1.5 * least_time
        assert cost.tokens_per_second > 5 * predict(shape, uniform_recipe(4), device).tokens_per_second

    def test_dropped_blocks_and_drafts(self):
        shape, setting = open_shape("qwen3-4b"), Setting(context=0)
        whole, half = (predict(shape, uniform_recipe(4), FAST, case) for case in
                       (setting, Setting(context=0, dropped=frozenset(range(18)))))  # fmt: skip
        assert 0.5 < half.memory / whole.memory < 0.7
        drafted = lambda rate: predict_drafted(shape, uniform_recipe(4), FAST, setting, frozenset(range(18)), 4, rate)
        assert drafted(0.95).tokens_per_second > whole.tokens_per_second > drafted(0.3).tokens_per_second
        assert drafted(0.9).tokens == pytest.approx((1 - 0.9**5) / 0.1)
        with pytest.raises(UsageError, match="acceptance rate = 1"):
            drafted(1)

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"context": -1}, "context = -1"),
            ({"batch": 0}, "batch = 0"),
            ({"cache_bits": 5}, "cache_bits = 5: 4, 8, 16"),
        ],
    )
    def test_settings_that_make_no_sense(self, setting, words):
        with pytest.raises(UsageError, match=words):
            Setting(**setting)


class TestBudgets:
    @pytest.mark.parametrize(
        ("text", "bytes"),
        [("3GB", 3e9), ("512 MB", 512e6), ("1.5g", 1.5e9), (1e6, 1e6), ("2e3KB", 2e6), ("3G", 3e9), ("3 GB", 3e9),
         ("3e9B", 3e9), ("3GiB", 3 * 2**30), ("512MiB", 2**29), ("2Gi", 2**31), ("5000 b", 5000), (4096, 4096)],
    )  # fmt: skip
    def test_bytes(self, text, bytes):
        assert parse_bytes(text) == bytes

    @pytest.mark.parametrize(
        ("text", "words"),
        [(text, "a number with B, KB, MB, GB, TB, KiB") for text in ("", "-3GB", "many", "3 XB", "nan", "3i", "٣GB")]
        + [(text, f"memory = '{text}' has no unit: .*such as 3GB") for text in ("3", "0", "3e9")]
        + [(text, "from 1 KB to 1000 TB are valid") for text in ("3B", "0GB", "1e30GB", "1e999B", "9" * 20 + "TB")]
        + [(value, "a number from 1,000") for value in (3, 0, -1.0, float("nan"), float("inf"), True, None, 10**400)],
    )
    def test_what_is_no_amount(self, text, words):
        with pytest.raises(UsageError, match=words) as caught:
            parse_bytes(text)
        assert len(str(caught.value)) < 300
