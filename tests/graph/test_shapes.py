"""Known shapes: their published parameter counts, their windows, and what works without weights."""

import gc
import json
import re
from functools import cache

import pytest
import tiny as maker
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

import jettison
from jettison.core.errors import JettisonError, UsageError
from jettison.graph.families import families
from jettison.graph.find import find_folder
from jettison.graph.folder import ModelFolder, open_shape
from jettison.graph.shape import ModelShape, shape_names, shapes
from jettison.graph.skeleton import build_skeleton

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
BLOOM = {"model_type": "bloom", "n_embed": 32, "n_layer": 1, "n_head": 4, "vocab_size": 100}
# As published for Gemma 3 4B: it omits heads and vocabulary, which have the defaults of the class.
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
}
opened = cache(open_shape)


def without(config, *fields):
    """Return the config without these fields."""
    return {name: value for name, value in config.items() if name not in fields}


def known(name, **changes):
    """Return the config of a known shape, with changes."""
    return shapes()[name]["config"] | changes


@pytest.fixture
def opening(tmp_path):
    """Return a function: config -> the shape of a folder that holds only this config.json."""

    def of(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return open_shape(tmp_path)

    return of


class TestKnownShapes:
    def test_the_ones_that_were_promised(self):
        assert len(shape_names()) >= 20
        assert set(shape_names()) >= {
            "qwen3-0.6b", "qwen3-4b", "qwen3-30b-a3b", "qwen2.5-7b", "llama-3.1-8b", "llama-3.3-70b", "mistral-7b",
            "gemma-2-2b", "gemma-3-1b", "phi-4", "gpt-oss-20b", "gpt-oss-120b", "smollm3-3b", "olmo2-7b", "opt-125m",
        }  # fmt: skip

    @pytest.mark.parametrize("name", shape_names())
    def test_parameters_are_the_published_ones(self, name):
        shape, config = opened(name), shapes()[name]["config"]
        assert shape.anatomy.parameters == shapes()[name]["parameters"]
        assert shape.anatomy.blocks == config["num_hidden_layers"]
        assert shape.anatomy.family.name == config["model_type"] in families()
        assert all(getattr(shape.config, field) == value for field, value in config.items() if "window" not in field)
        assert (shape.name, shape.weights) == (name, False)

    @pytest.mark.parametrize("name", shape_names())
    def test_the_row_is_the_model_that_its_name_says(self, name):
        size = re.search(r"-([\d.]+)([bm])\b", name)
        if size:
            assert shapes()[name]["parameters"] == pytest.approx(
                float(size[1]) * {"b": 1e9, "m": 1e6}[size[2]], rel=0.35
            )
        assert re.fullmatch(r"[\w-]+/[\w.-]+", opened(name).hub)
        assert opened(name).license
        assert len({row["hub"] for row in shapes().values()}) == len(shapes())

    @pytest.mark.parametrize(
        ("name", "window", "full"),
        [
            ("gemma-2-2b", 4096, range(1, 26, 2)),
            ("gemma-2-9b", 4096, range(1, 42, 2)),
            ("gemma-3-1b", 512, (5, 11, 17, 23)),
            ("gpt-oss-20b", 128, range(1, 24, 2)),
            ("gpt-oss-120b", 128, range(1, 36, 2)),
        ],
    )
    def test_layers_that_look_back_only_so_far(self, name, window, full):
        config = opened(name).config
        assert config.sliding_window == window
        kinds = ["full_attention" if layer in full else "sliding_attention" for layer in range(len(config.layer_types))]
        assert config.layer_types == kinds

    @pytest.mark.parametrize("name", [name for name in shape_names() if not name.startswith(("gemma", "gpt-oss"))])
    def test_all_others_look_back_all_the_way(self, name):
        config = opened(name).config
        assert "sliding_attention" not in (getattr(config, "layer_types", None) or [])
        window = getattr(config, "sliding_window", None)
        assert window is None or window >= config.max_position_embeddings

    @pytest.mark.parametrize(("name", "experts", "chosen"), [("qwen3-30b-a3b", 128, 8), ("gpt-oss-20b", 32, 4)])
    def test_experts(self, name, experts, chosen):
        shape = opened(name)
        linears = [linear for linear in shape.anatomy.of_block(3) if "expert" in linear.roles]
        assert len(linears) == 3 * experts
        assert shape.config.num_experts_per_tok == chosen

    def test_a_change_of_one_does_not_reach_the_next(self):
        open_shape("gpt-oss-20b").raw_config["layer_types"].clear()
        open_shape("gpt-oss-20b").config.num_hidden_layers = 1
        assert len(open_shape("gpt-oss-20b").raw_config["layer_types"]) == 24
        assert open_shape("gpt-oss-20b").config.num_hidden_layers == 24


class TestOpening:
    def test_a_bare_config_file(self, tmp_path):
        (tmp_path / "mine.json").write_text(json.dumps(known("qwen3-0.6b")))
        shape = open_shape(tmp_path / "mine.json")
        assert type(shape) is ModelShape
        assert (shape.weights, shape.hub, shape.license) == (False, "", "")
        assert shape.anatomy == opened("qwen3-0.6b").anatomy

    def test_a_folder_of_only_a_config(self, opening):
        shape = opening(known("qwen3-0.6b"))
        assert isinstance(shape, ModelFolder) and not shape.weights
        assert shape.anatomy == opened("qwen3-0.6b").anatomy
        with pytest.raises(UsageError, match="has no model.safetensors"):
            _ = shape.checkpoint

    def test_a_folder_with_weights(self, tiny):
        shape = open_shape(tiny("llama"))
        assert isinstance(shape, ModelFolder) and shape.weights
        assert open_shape("scribe").weights

    @pytest.mark.parametrize(
        ("file", "weights"),
        [
            ("adapter_model.safetensors", False),
            ("model-00001-of-00002.safetensors", True),
            ("model.safetensors.index.json", True),  # names shards; the checkpoint checks that they exist
        ],
    )
    def test_what_counts_as_weights(self, opening, tmp_path, file, weights):
        folder = opening(known("opt-125m"))
        (tmp_path / file).touch()
        assert folder.weights is weights

    def test_a_folder_goes_before_the_shape_of_its_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "qwen3-4b").mkdir()
        assert open_shape("qwen3-4b").hub == "Qwen/Qwen3-4B"  # the folder holds no model yet
        (tmp_path / "qwen3-4b" / "config.json").write_text(json.dumps(known("opt-125m")))
        assert open_shape("qwen3-4b").config.model_type == "opt"
        assert find_folder("qwen3-4b") == tmp_path / "qwen3-4b"

    @pytest.mark.parametrize(
        ("name", "shape"), [("nowhere", "qwen3-4b"), ("llama-3-8b", "llama-3.1-8b"), ("Qwen3-8B", "qwen3-8b")]
    )
    def test_an_unknown_name(self, name, shape):
        with pytest.raises(UsageError, match=f"no model '{name}'.*a known shape such as {shape}$"):
            open_shape(name)

    def test_files_that_are_no_config(self, tmp_path):
        with pytest.raises(UsageError, match="there is no file .*other.json"):
            open_shape(tmp_path / "other.json")
        (tmp_path / "other.json").write_text("[1]")
        with pytest.raises(JettisonError, match=r"other.json holds a JSON list"):
            open_shape(tmp_path / "other.json")

    def test_a_shape_cannot_be_compressed(self, tmp_path, jettison):
        words = "qwen3-4b is a shape without weights, for `jettison plan`; give its folder or hub id Qwen/Qwen3-4B"
        with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
            find_folder("qwen3-4b")
        code, _, stderr = jettison("compress", "qwen3-4b", "--recipe", "w4", "--out", tmp_path / "out")
        assert code == 2
        assert words in " ".join(stderr.split())
        assert not (tmp_path / "out").exists()

    def test_compress_says_so_too(self, tmp_path):
        with pytest.raises(UsageError, match="a shape without weights"):
            jettison.compress("gpt-oss-20b", "w4", out=tmp_path / "out")


class TestConfigs:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (known("qwen3-4b", hidden_size=0), "hidden_size = 0; a positive whole number"),
            (known("qwen3-4b", num_hidden_layers=-3), "num_hidden_layers = -3; a positive whole number"),
            (known("qwen3-4b", vocab_size="many"), "vocab_size = 'many'; a positive whole number"),
            (known("qwen3-4b", num_hidden_layers=2.5), "num_hidden_layers = 2.5; a positive whole number"),
            (known("qwen3-4b", hidden_size=True), "hidden_size = True; a positive whole number"),
            (known("qwen3-4b", vocab_size=None), "vocab_size.*None"),
            (known("llama-3.1-8b", num_attention_heads=0), "num_attention_heads = 0; a positive whole number"),
            (known("qwen3-4b", num_key_value_heads=0), "num_key_value_heads = 0; a positive whole number"),
            (
                known("qwen3-4b", num_key_value_heads=5),
                "num_key_value_heads = 5; a divisor of num_attention_heads = 32",
            ),
            (known("qwen3-4b", num_key_value_heads=64), "num_key_value_heads = 64; a divisor"),
            (known("qwen3-4b", head_dim=-1), "head_dim = -1; a positive whole number"),
            (known("qwen3-4b", intermediate_size=0), "intermediate_size = 0; a positive whole number"),
            (known("gpt-oss-20b", num_local_experts=0), "num_local_experts = 0; a positive whole number"),
            (known("gpt-oss-20b", num_experts_per_tok=33), "num_experts_per_tok = 33; there are 32 experts"),
            (known("gpt-oss-20b", num_hidden_layers=9), "cannot be used: .*num_hidden_layers` .9. .*layer_types` .24."),
            (GPT2 | {"n_embd": 0}, "n_embd = 0; a positive whole number"),
            (GPT2 | {"n_head": "4"}, "cannot be used: .*n_head.*expected int.*'4'"),
            (GEMMA3 | {"text_config": {"hidden_size": 64, "num_hidden_layers": 0}}, "num_hidden_layers = 0"),
        ],
    )
    def test_absurd_numbers(self, opening, config, words):
        with pytest.raises(UsageError, match=f"config.json.*{words}"):
            _ = opening(config).anatomy

    @pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
    @pytest.mark.parametrize("name", ["llama-3.1-8b", "opt-125m", "gpt-oss-20b"])
    def test_a_default_of_the_family_is_no_answer(self, opening, name, field):
        with pytest.raises(UsageError, match=f"config.json: {field} is missing; a positive whole number is needed"):
            _ = opening(without(known(name), field, "layer_types")).config

    @pytest.mark.parametrize(
        ("config", "missing"),
        [
            (without(GPT2, "n_layer"), "n_layer"),
            (without(GEMMA3, "text_config"), "text_config.hidden_size"),
            (GEMMA3 | {"text_config": {"hidden_size": 64}}, "text_config.num_hidden_layers"),
        ],
    )
    def test_missing_under_the_name_of_the_family(self, opening, config, missing):
        with pytest.raises(UsageError, match=f"config.json: {missing} is missing"):
            _ = opening(config).config

    def test_names_of_every_family(self, opening):
        assert opening(GPT2).anatomy.blocks == 2
        assert opening(without(GPT2, "n_embd") | {"hidden_size": 32}).config.n_embd == 32
        assert opening(GPT2 | {"n_embd": 768}).config.hidden_size == 768  # equals the family's default, but is stated
        assert opening(without(GPT2, "n_embd") | {"hidden_size": 768}).config.n_embd == 768
        assert opening(BLOOM).config.hidden_size == 32
        assert opening(GEMMA3).config.get_text_config().num_attention_heads == 8
        assert opening(known("qwen3-4b", num_key_value_heads=None)).config.num_key_value_heads == 32

    def test_optional_fields_may_be_left_out(self, opening):
        config = opening(without(known("mistral-7b"), "head_dim", "num_key_value_heads", "sliding_window")).config
        assert (config.head_dim, config.num_key_value_heads) == (128, 8)


class TestShortened:
    def test_the_first_blocks(self):
        shape = opened("gemma-3-1b")
        short = shape.shortened(7)
        assert short.anatomy.linears[1:-1] == tuple(
            linear for linear in shape.anatomy if linear.block is not None and linear.block < 7
        )
        assert short.config.layer_types[5:] == ["full_attention", "sliding_attention"]
        assert shape.config.num_hidden_layers == 26

    def test_no_more_than_there_are(self, tiny):
        source = ModelFolder(tiny("qwen3", num_hidden_layers=1))
        short = source.shortened(2)
        assert isinstance(short, ModelFolder)
        assert short.anatomy == source.anatomy
        short.fill(short.new_skeleton())


class TestSkeleton:
    @pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
    def test_experts_cost_no_initialization(self, family):
        """Initialization of all experts once made the skeleton of a large mixture of experts take seconds."""

        class Calls(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.made = self.filled = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                empty = "empty" in function.name()
                self.made += empty
                self.filled += not empty and "detach" not in function.name()
                return function(*args, **(kwargs or {}))

        counts = []
        for experts in (4, 32):
            sizes = maker.CONFIGS[family] | {"num_experts": experts, "num_local_experts": experts}
            with Calls() as calls:
                build_skeleton(AutoConfig.for_model(family, **without(sizes, "num_experts")))
            counts.append(calls)
        assert counts[1].made >= counts[0].made + 2 * 28 * 3  # 2 blocks, 28 more experts, 3 matrices each
        assert counts[1].filled == counts[0].filled

    def test_the_garbage_collector_is_left_as_it_was(self, monkeypatch):
        config = AutoConfig.for_model("qwen3_moe", **maker.CONFIGS["qwen3_moe"])
        assert gc.isenabled()
        build_skeleton(config)
        assert gc.isenabled()

        def fail(*arguments):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("jettison.graph.experts.Experts", fail)
        with pytest.raises(RuntimeError):
            build_skeleton(config)
        assert gc.isenabled()

    def test_one_skeleton_serves_all_who_only_read(self, monkeypatch):
        builds = []
        monkeypatch.setattr(
            "jettison.graph.skeleton.build_skeleton", lambda config: builds.append(1) or build_skeleton(config)
        )
        shape = open_shape("opt-125m")
        assert shape.skeleton is shape.skeleton
        assert shape.anatomy.blocks == 12
        assert len(builds) == 1
        assert shape.new_skeleton() is not shape.skeleton
