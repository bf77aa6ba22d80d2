"""Presets on any shape. A group size is a wish; reading, running and planning a model use the same adjusted size."""

import json
from importlib import import_module

import pytest
import torch
from transformers import AutoModelForCausalLM

from jettison.devices.device import find_device
from jettison.encodings.grid import WHOLE_ROW
from jettison.encodings.uniform import UniformGrid
from jettison.formats.runtimes import find_runtime, fitted, illegal
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder, open_shape
from jettison.graph.modules import QuantizedLinear, TiledLinear
from jettison.pipeline.compression import compress
from jettison.pipeline.jobs import assign, say_adjusted
from jettison.planning.cost import Setting, planned_all, predict, stored_bits
from jettison.planning.groups import Unit, choices, find_units
from jettison.recipe.recipe import load_recipe, preset_names, with_windows
from jettison.runtime.load import load

SHORT = ["calibration.text=books", "calibration.samples=2", "calibration.length=32"]
# No usual group size divides 72 or 97.
ODD = {"hidden_size": 72, "head_dim": 18, "intermediate_size": 97, "num_hidden_layers": 1}


def linear(columns, rows=64, role="q", block=0):
    """Return the description of a linear."""
    return Linear(f"{role}{rows}", (role,), rows, columns, block, "fused", "inputs")


WISHES = [
    (128, [576], None, 64), (128, [1536], None, 128), (64, [576], None, 64), (96, [576], None, 96),
    (100, [576], None, 64), (128, [64], None, 64), (256, [1024], None, 256), (1000, [1024], None, 256),
    (128, [96], None, 32), (128, [48], None, 16), (128, [72], None, WHOLE_ROW), (128, [97], None, WHOLE_ROW),
    (8, [97], None, WHOLE_ROW), (8, [64], None, 8), (WHOLE_ROW, [576], None, WHOLE_ROW),
    (128, [576, 1536], None, 64), (128, [2048, 704], None, 64), (128, [64, 72], None, WHOLE_ROW),
    (48, [576], "vllm", 32), (48, [576], "jettison", 48), (256, [1024], "vllm", 128), (128, [48], "vllm", 16),
    (128, [1024], "llama.cpp", 32), (128, [72], "vllm", WHOLE_ROW), (256, [1024], "onnxruntime", 256),
]  # fmt: skip


@pytest.mark.parametrize(("wish", "columns", "engine", "wanted"), WISHES, ids=str)
def test_the_largest_size_below_that_fits(wish, columns, engine, wanted):
    linears = [linear(width) for width in columns]
    grid = fitted(UniformGrid(4, wish), linears, engine and find_runtime(engine))
    assert grid == UniformGrid(4, wanted)
    for member in linears:
        assert grid.groups(member.columns) >= 1


def test_an_engine_that_loads_none_says_why_itself(tiny):
    """SGLang needs row widths that are multiples of 128."""
    source = ModelFolder(tiny("llama"))
    assert fitted(UniformGrid(4, 128), [linear(72)], find_runtime("sglang")) == UniformGrid(4, WHOLE_ROW)
    with pytest.raises(Exception, match="valid: multiples of 128"):
        assign(source, load_recipe("w4"), "sglang")


class TestCompressed:
    @pytest.fixture(scope="class")
    def made(self, tiny, tmp_path_factory):
        """Return made(preset) -> folder and manifest of a compressed model whose rows have 72 and 97 weights."""
        out, manifests = tmp_path_factory.mktemp("presets"), {}

        def compressed(preset):
            if preset not in manifests:
                caldera = any(step.method == "caldera" for step in load_recipe(preset).steps)
                changes = [*SHORT, *(["quantize.iterations=2"] if caldera else [])]
                manifests[preset] = compress(tiny("llama", **ODD), preset, out / preset, changes=changes)
            return out / preset, manifests[preset]

        return compressed

    @pytest.mark.parametrize("preset", preset_names())
    def test_every_preset(self, made, tiny, preset):
        """The compressed model has the same logits in transformers as in jettison; with 8 bits, near the original's."""
        folder, _ = made(preset)
        ids = torch.randint(4096, (2, 24), generator=torch.Generator().manual_seed(0))
        ours = load(folder, exact=True)  # without the kernels, which round activations to int8
        ours.model.float()
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            expected = reference(ids).logits
        assert torch.allclose(ours.logits(ids).float(), expected, atol=2e-3 * float(expected.abs().max()))
        quick = load(folder).logits(ids).float()
        assert torch.nn.functional.cosine_similarity(quick.flatten(), expected.flatten(), dim=0) > 0.99
        if preset == "w8":
            original = load(tiny("llama", **ODD)).logits(ids).float()
            assert torch.nn.functional.cosine_similarity(original.flatten(), expected.flatten(), dim=0) > 0.995

    @pytest.mark.parametrize("preset", preset_names())
    def test_the_wish_and_what_was_used_are_recorded(self, made, preset):
        folder, manifest = made(preset)
        wishes = [step["quantize"]["group_size"] for step in manifest["recipe"]["steps"] if "quantize" in step]
        assert wishes == [step.grid.group_size for step in load_recipe(preset).of("quantize")]
        used = {record["grid"] for block in manifest["blocks"] for record in block["linears"].values()}
        assert used and all(" row " in grid for grid in used)
        groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
        assert {group["weights"]["strategy"] for group in groups} == {"channel"}

    def test_the_kernels_serve_what_they_can(self, made):
        """4-bit weights in one group of 72 or 97 columns are packed in tiles, with the same values."""
        modules = [m for m in load(made("w4")[0]).model.modules() if isinstance(m, QuantizedLinear)]
        assert modules and all(isinstance(module, TiledLinear) for module in modules)
        for module in modules[:8]:
            assert torch.equal(module.weight, module.packed().weight)

    def test_it_is_said_once_and_continues(self, tiny, tmp_path, monkeypatch):
        printed = []
        monkeypatch.setattr(import_module("jettison.pipeline.compression"), "say", printed.append)
        source = tiny(
            "llama",
            hidden_size=192,
            num_attention_heads=12,
            num_key_value_heads=4,
            num_hidden_layers=1,
            intermediate_size=96,
        )
        for _ in range(2):
            compress(source, "w8", tmp_path / "out")
        notes = [line for line in printed if "group_size" in line]
        assert notes == 2 * [
            "note: group_size 128 does not fit rows of 96 weights: groups of 32 instead in 1 matrix; "
            "group_size 128 does not fit rows of 192 weights: groups of 64 instead in 7 matrices"
        ]

    def test_another_engine_is_another_run(self, tiny, tmp_path):
        """If the runtime changes the group sizes, a folder refuses to continue with other sizes."""
        source, recipe = tiny("llama"), {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 48}}]}
        recipe["steps"][0]["where"] = {"role": "down"}  # rows of 96
        first = compress(source, recipe, tmp_path / "out")
        assert {record["grid"] for block in first["blocks"] for record in block["linears"].values()} == {"int4 g48 sym"}
        with pytest.raises(Exception, match="holds another run"):
            compress(source, recipe, tmp_path / "out", runtime="vllm")
        other = compress(source, recipe, tmp_path / "other", runtime="vllm")
        assert {record["grid"] for block in other["blocks"] for record in block["linears"].values()} == {"int4 g32 sym"}


class TestShared:
    def test_all_experts_of_a_model_share_one(self, tiny):
        """gate and up have 64 columns, down has 32. transformers reads only one grid for all experts."""
        source = ModelFolder(tiny("qwen3_moe"))
        jobs = assign(source, with_windows(load_recipe("w4"), source.positions), "transformers")
        sizes = {"expert" in job.linear.roles: set() for job in jobs}
        for job in jobs:
            sizes["expert" in job.linear.roles].add(job.grid.group_size)
        assert sizes == {True: {32}, False: {64}}
        assert "rows of 64 weights: groups of 32 instead in 16 matrices" in say_adjusted(jobs)

    @pytest.mark.parametrize("engine", [None, "transformers", "vllm"])
    @pytest.mark.parametrize(
        ("family", "preset"),
        [("llama", "gateup-w4w2"), ("llama", "w4"), ("stablelm", "w3"), ("qwen3_moe", "w2"), ("qwen3_moe", "w4")],
    )
    def test_the_cost_model_takes_what_compress_takes(self, tiny, family, preset, engine):
        source = ModelFolder(tiny(family))
        recipe = with_windows(load_recipe(preset), source.positions)
        target = engine and find_runtime(engine)
        jobs = {job.linear: job.grid for job in assign(source, recipe, engine)}
        for unit, choice in planned_all(find_units(source.anatomy), recipe, target).items():
            for member in unit.linears:
                grid = jobs.get(member)
                assert (choice.grid is None) == (grid is None)
                assert grid is None or (grid.bits, grid.group_size) == (choice.bits, choice.group_size)

    @pytest.mark.parametrize("engine", [None, "vllm"])
    def test_the_planner_offers_what_compress_takes(self, engine):
        family, target = open_shape("llama-3.2-1b").anatomy.family, engine and find_runtime(engine)
        for columns, expected in ((576, [32, 64]), (1536, [32, 64, 128]), (100, [WHOLE_ROW]), (97, [WHOLE_ROW])):
            unit = Unit("u", "o", 0, (linear(columns, 576, "o"),))
            offered = choices(unit, family, bits=(4,), runtime=target)
            assert [choice.group_size for choice in offered] == expected
            assert not target or not any(target.allows(unit.linears[0], choice.grid) for choice in offered)


def test_known_shapes_have_every_preset():
    """For widths such as 2880 and 1152, all presets have a cost, plausible sizes, and group sizes that vLLM loads."""
    device, vllm = find_device("strix-halo"), find_runtime("vllm")
    for name in ("gpt-oss-20b", "gemma-3-1b", "opt-125m"):
        shape = open_shape(name)
        for preset in preset_names():
            recipe = load_recipe(preset)
            assert predict(shape, recipe, device, Setting(256)).seconds > 0
            chosen = planned_all(find_units(shape.anatomy), recipe, vllm)
            assert all(stored_bits(unit, choice) >= choice.bits for unit, choice in chosen.items())
            grids = {item.name: choice.grid for unit, choice in chosen.items() for item in unit.linears if choice.grid}
            assert not [line for line in illegal(vllm, shape.anatomy, grids) if "group" in line]
