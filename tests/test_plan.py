"""Devices, the roofline, and the choice among presets."""

import json

import pytest

import jettison
from jettison.devices import Device, Operator, decode_cost, device_names, find_device, measure
from jettison.errors import UsageError
from jettison.models import ModelFolder
from jettison.plan.presets import cache_bytes, plan, predict, rank_presets
from jettison.recipe import load_recipe, preset_names
from jettison.units import parse_bytes

ROW = {"bandwidth": 50e9, "memory": 4e9, "flops": 1e12}


@pytest.fixture(autouse=True, scope="module")
def this_machine(tmp_path_factory):
    """A device ``this`` without measuring: the figures of the tests do not depend on the machine."""
    patch = pytest.MonkeyPatch()
    patch.setattr("jettison.devices.device.measure", lambda: ROW | {"share": 1.0})
    yield
    patch.undo()


def uniform(bits, low=None, group=128):
    """Every linear of the blocks and the head at ``bits``; gate and up at ``low``."""
    step = lambda bits, *roles: {
        "quantize": {"method": "rtn", "bits": bits, "group_size": group}, "where": {"role": list(roles)},
    }  # fmt: skip
    if low is None:
        return load_recipe({"steps": [step(bits, "q", "k", "v", "o", "gate", "up", "down", "head")]})
    return load_recipe({"steps": [step(bits, "q", "k", "v", "o", "down", "head"), step(low, "gate", "up")]})


def shaped(folder, **config):
    """A model folder of which only the shapes exist."""
    folder.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


QWEN3_4B = dict(
    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=40960,
)  # fmt: skip


class TestRoofline:
    def test_bytes_bound_and_arithmetic_bound(self):
        device = Device("d", "d", bandwidth=1e9, memory=1e12, flops=1e12, source="")
        read, counted = Operator("read", 1e6, 1e6), Operator("counted", 1e3, 1e9)
        cost = decode_cost([read, counted], 5e5, device)
        assert cost.seconds == pytest.approx(5e5 / 1e9 + 1e6 / 1e9 + 2e9 / 1e12)
        assert cost.read == cost.memory == 1e6 + 1e3 + 5e5

    def test_experts_are_read_in_part_and_kept_whole(self):
        device = Device("d", "d", bandwidth=1e9, memory=1e12, flops=1e15, source="")
        cost = decode_cost([Operator("expert", 8e6, 16e6, share=0.25)], 0, device)
        assert (cost.read, cost.memory) == (2e6, 8e6)
        assert cost.seconds == pytest.approx(2e-3)

    @pytest.mark.parametrize(("context", "gain"), [(0, 27.6), (1024, 25.2), (2048, 23.3), (4096, 20.1), (32768, 6.9)])
    def test_the_gain_of_qwen3_4b(self, tmp_path, context, gain):
        """W4/W2-GateUp over uniform W4, adapter left out: the table reconstructed for arXiv:2606.04238."""
        source = ModelFolder(shaped(tmp_path / "qwen", **QWEN3_4B))
        device = Device("fast", "fast", bandwidth=256e9, memory=128e9, flops=1e18, source="")
        seconds = [predict(source, recipe, device, context).seconds for recipe in (uniform(4), uniform(4, low=2))]
        assert 100 * (seconds[0] / seconds[1] - 1) == pytest.approx(gain, abs=0.5)

    def test_the_cache_of_a_sliding_window_stays_small(self, tiny):
        config = ModelFolder(tiny("gemma3_text")).config.get_text_config()
        per_token = 2 * 2 * 16 * 2  # keys and values, heads, width, bytes
        assert cache_bytes(config, 100) == per_token * (8 + 100)

    def test_scales_and_adapters_are_counted(self, tiny):
        source, device = ModelFolder(tiny("llama")), find_device("this")
        plain = uniform(4, group=32)
        adapted = load_recipe(plain.to_dict() | {"steps": [
            *plain.to_dict()["steps"], {"recover": {"rank": 4, "train": ["lora"]}, "where": {"role": ["up"]}},
        ]})  # fmt: skip
        memory = [predict(source, recipe, device, 0).memory for recipe in (plain, adapted)]
        assert memory[1] - memory[0] == 2 * 4 * (64 + 96) * 2
        weights = sum(linear.weights for linear in source.anatomy if "embed" not in linear.roles)
        rest = source.anatomy.parameters - weights
        assert memory[0] == weights * 4.5 / 8 + 2 * rest


class TestDevices:
    def test_every_row_is_sound(self):
        for name in device_names():
            device = find_device(name)
            assert 1e9 < device.bandwidth < 1e13 and device.memory > 1e9 and device.source != "not stated"

    def test_a_file_of_ones_own(self, tmp_path):
        (tmp_path / "headset.yaml").write_text("bandwidth: 50e9\nmemory: 4.0e+9\nflops: 1.0e+12\nshare: 0.5\n")
        device = find_device(tmp_path / "headset.yaml")
        assert (device.name, device.bandwidth, device.memory) == ("headset", 25e9, 4e9)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("bandwidth: 0\nmemory: 1\nflops: 1", "bandwidth = 0; a positive number"),
            ("bandwidth: fast\nmemory: 1\nflops: 1", "bandwidth = 'fast'"),
            ("memory: 1\nflops: 1", "bandwidth = None"),
            ("bandwith: 1\nmemory: 1\nflops: 1", "'bandwith'.*did you mean 'bandwidth'"),
            ("bandwidth: 1\nmemory: 1\nflops: 1\nshare: 2", "share = 2"),
            ("- 1", "a mapping"),
            ("a: [", "cannot read device file"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, text, words):
        (tmp_path / "d.yaml").write_text(text)
        with pytest.raises(UsageError, match=words):
            find_device(tmp_path / "d.yaml")

    def test_an_unknown_name(self):
        with pytest.raises(UsageError, match="unknown device 'strix'.*did you mean"):
            find_device("strix")

    def test_this_machine_is_measured_once(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
        monkeypatch.setattr("jettison.devices.machine.READ_BYTES", 1 << 22)
        monkeypatch.setattr("jettison.devices.machine.MATRIX", 64)
        first = measure()
        assert all(first[field] > 0 for field in ("bandwidth", "memory", "flops"))
        assert measure() == first
        assert (tmp_path / "device.json").exists()


class TestBudgets:
    @pytest.mark.parametrize(
        ("text", "bytes"), [("3GB", 3e9), ("512 MB", 512e6), ("1.5g", None), ("7", 7), (1e6, 1e6), ("2e3KB", 2e6)]
    )
    def test_bytes(self, text, bytes):
        if bytes is None:
            with pytest.raises(UsageError, match="GB"):
                parse_bytes(text)
        else:
            assert parse_bytes(text) == bytes

    @pytest.mark.parametrize("text", ["", "-3GB", "0", "many", "3 XB", "nan"])
    def test_what_is_no_amount(self, text):
        with pytest.raises(UsageError, match="a positive number with B, KB, MB, GB or TB"):
            parse_bytes(text)


class TestPlan:
    def test_the_least_loss_that_fits(self):
        costs = {choice.recipe.name: choice for choice in rank_presets("scribe", memory="1GB", context=512)}
        assert next(iter(costs)) == "w8" and set(costs) == set(preset_names())
        for name, choice in costs.items():
            chosen = plan("scribe", memory=choice.cost.memory, context=512)
            assert chosen.loss <= load_recipe(name).loss
        assert plan("scribe", memory="1GB").name == "w8"

    def test_reasons_name_what_was_passed_over(self):
        memory = next(c for c in rank_presets("scribe", memory="1GB") if c.recipe.name == "gateup-w4w2").cost.memory
        chosen = plan("scribe", memory=memory)
        assert chosen.why[0].startswith("predicted: ")
        assert any(reason.startswith("w8 would lose less but misses the budget: ") for reason in chosen.why)

    def test_speed_is_a_budget_too(self):
        speeds = {c.recipe.name: c.cost.tokens_per_second for c in rank_presets("scribe", tps=1)}
        chosen = plan("scribe", tps=0.999 * speeds["w4"])
        assert speeds[chosen.name] >= speeds["w4"] > speeds["w8"]

    def test_a_change_that_no_preset_knows(self):
        with pytest.raises(UsageError, match="unknown change 'recover.sampels'.*did you mean 'recover.samples'"):
            plan("scribe", memory="1GB", changes=["recover.sampels=64"])
        with pytest.raises(UsageError, match="bits = 9"):
            plan("scribe", memory="1GB", changes=["quantize.bits=9"])

    def test_group_sizes_that_do_not_divide_are_a_miss(self, tiny):
        with pytest.raises(UsageError, match="group_size 128 does not divide.*--set quantize.group_size"):
            plan(tiny("llama"), memory="1GB")
        assert plan(tiny("llama"), memory="1GB", changes=(c for c in ["quantize.group_size=32"])).name == "w8"

    def test_changes_reach_the_prediction(self):
        memory = lambda *changes: (
            next(
                c for c in rank_presets("scribe", memory="1GB", changes=changes) if c.recipe.name == "gateup-w4w2"
            ).cost.memory
        )
        assert memory("recover.rank=32") > memory()

    def test_a_budget_that_nothing_meets(self):
        with pytest.raises(UsageError, match="no preset meets the budget for scribe: the fastest, .* the smallest"):
            plan("scribe", memory="1MB")

    @pytest.mark.parametrize(
        ("options", "words"),
        [({}, "a plan needs a budget"), ({"tps": 0}, "tps = 0"), ({"tps": 1, "context": -1}, "context = -1")],
    )
    def test_budgets_that_make_no_sense(self, options, words):
        with pytest.raises(UsageError, match=words):
            plan("scribe", **options)

    def test_the_verb_is_the_function_and_the_room_is_still_there(self):
        assert jettison.plan is plan
