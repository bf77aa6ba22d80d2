"""Tensors, tokenizers and packed folders that are damaged or have other types and shapes: one-line errors."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import write_json
from jettison.domains.text.data import Text
from jettison.encodings.uniform import UniformGrid
from jettison.formats.packed import read_grids
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.size import measure_size
from jettison.statistics.sensitivity import sensitivity

RTN = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]}
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny("llama"), tmp_path / "m")


def change(file, **values):
    """Change fields of a JSON file."""
    write_json(file, json.loads(file.read_text()) | values)


class TestTensors:
    @pytest.mark.parametrize("shape", [(-1,), (), (1, 96, 64), (64, 96), (0, 64)], ids=str)
    def test_weights_of_other_shapes(self, folder, shape):
        tensors = load_file(folder / "model.safetensors")
        whole = tensors[UP].flatten()
        count = max(0, torch.Size(shape).numel())
        tensors[UP] = (whole if -1 in shape else whole[:count].reshape(shape)).clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(JettisonError, match=rf"{UP} has shape .*, the config asks for \(96, 64\)"):
            ModelFolder(folder).read_weight(UP.removesuffix(".weight"), "linear")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str)
    def test_weights_of_other_types(self, folder, dtype):
        """This includes eight-bit floats: their scales are in other tensors, and without them the values are wrong."""
        tensors = load_file(folder / "model.safetensors")
        tensors[UP] = tensors[UP].to(dtype)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(JettisonError, match=f"{UP} is stored as {dtype}: full-precision weights are needed"):
            ModelFolder(folder).read_weight(UP.removesuffix(".weight"), "linear")
        with pytest.raises(JettisonError, match=f"{UP} is stored as {dtype}"):
            load_dense(ModelFolder(folder))

    @pytest.mark.parametrize("kind", ["gradients", "measured"])
    def test_weights_that_let_the_outputs_overflow(self, folder, kind):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] = torch.finfo(tensors["model.norm.weight"].dtype).max
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        source = ModelFolder(folder)
        parts = {"up": [linear for linear in source.anatomy if "up" in linear.roles]}
        with pytest.raises(JettisonError, match="its outputs overflow|activations are not sound"):
            sensitivity(source, parts, {"up": [UniformGrid(4, 32)]}, Text(), kind=kind, samples=1, length=16)

    @pytest.mark.parametrize("shape", [(-1,), (), (4, -1)], ids=str)
    def test_stacked_experts_of_other_shapes(self, tiny, tmp_path, shape):
        folder, name = shutil.copytree(tiny("gpt_oss"), tmp_path / "m"), "model.layers.0.mlp.experts.gate_up_proj"
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = (tensors[name].reshape(shape) if shape else tensors[name].flatten()[0]).clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        source = ModelFolder(folder)
        with pytest.raises(JettisonError, match="gate_up_proj has shape"):
            source.read_weight("model.layers.0.mlp.experts.1.gate_proj", "linear")

    @pytest.mark.parametrize(
        ("kind", "values", "stored"),
        [("F4", 16, 8), ("F6_E2M3", 16, 12), ("F8_E4M3FNUZ", 3, 3), ("C64", 3, 24), ("U64", 3, 24), ("BOOL", 5, 5)],
    )
    def test_sizes_of_every_type(self, tmp_path, kind, values, stored):
        header = json.dumps({"x": {"dtype": kind, "shape": [values], "data_offsets": [0, stored]}}).encode()
        file = tmp_path / "model.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(stored))
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.tensor_bytes == stored
        if kind.startswith("F6"):
            with pytest.raises(JettisonError, match="cannot read tensor x"):
                checkpoint.read("x")


class TestTokenizer:
    @pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
    @pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "\xff", '{"a":' * 2000 + "1" + "}" * 2000])
    def test_damaged_ones(self, folder, file, text):
        (folder / file).write_text(text, encoding="latin-1")
        with pytest.raises(UsageError, match=f"^{folder} has no usable tokenizer: .+"):
            _ = ModelFolder(folder).tokenizer

    @pytest.mark.parametrize(
        "values",
        [
            {"model": {"type": "BPE", "vocab": 5, "merges": []}},
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            {"added_tokens": [{"id": -1, "content": "It"}]},
            {"decoder": 5},
        ],
        ids=str,
    )
    def test_parts_of_wrong_types(self, folder, values):
        change(folder / "tokenizer.json", **values)
        with pytest.raises(UsageError, match="has no usable tokenizer"):
            _ = ModelFolder(folder).tokenizer

    def test_a_panic_is_not_said_twice(self, folder, jettison):
        """Rust writes a long panic message to stderr before it raises the exception."""
        data = json.loads((folder / "tokenizer.json").read_text())
        change(folder / "tokenizer.json", model=data["model"] | {"continuing_subword_prefix": "##########"})
        code, _, err = jettison("generate", folder, "-p", "It", "-n", 2)
        assert code == 2 and err.startswith(f"error: {folder} has no usable tokenizer: ") and err.count("\n") == 1

    @pytest.mark.parametrize(
        "template", ["{{", "{{ raise_exception('no') }}", "{% for i in range(10 ** 12) %}x{% endfor %}"]
    )
    def test_chat_templates(self, folder, template, jettison):
        (folder / "chat_template.jinja").write_text(template)
        code, _, err = jettison("generate", folder, "-p", "It", "-n", 2, "--chat")
        assert code == 2 and "error: the chat template of" in err and "Traceback" not in err

    def test_a_chat_template_without_end(self, folder, jettison, monkeypatch):
        loop = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
        (folder / "chat_template.jinja").write_text(loop)
        monkeypatch.setattr("jettison.runtime.load.TEMPLATE_SECONDS", 0.2)
        code, _, err = jettison("generate", folder, "-p", "It", "-n", 2, "--chat")
        assert code == 2 and "the chat template of" in err and err.strip().endswith("takes more than 0.2 seconds")

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ("{", "not readable JSON"),
            ({"cache_implementation": "x"}, "generation_config.json cannot be used"),
            ({"eos_token_id": "x"}, "eos_token_id = 'x'; a whole number or several are needed"),
            ({"eos_token_id": [["x"]]}, "eos_token_id = .*; a whole number or several are needed"),
        ],
        ids=str,
    )
    def test_settings_of_generation(self, folder, values, words):
        (folder / "generation_config.json").write_text(values if isinstance(values, str) else json.dumps(values))
        with pytest.raises(JettisonError, match=words):
            load_dense(ModelFolder(folder))


class TestPackedFolders:
    @pytest.fixture(scope="class")
    def packed(self, tiny, tmp_path_factory):
        out = tmp_path_factory.mktemp("packed") / "out"
        compress(tiny("llama"), RTN, out)
        return out

    @pytest.fixture
    def grids(self, packed, tmp_path):
        """Return a function that reads the grids after a change of the config.

        grids(where, value): ``where`` is the dotted path of a field in quantization_config, ``value`` its new value.
        """
        folder = shutil.copytree(packed, tmp_path / "packed")

        def read(where, value):
            config = json.loads((packed / "config.json").read_text())
            *path, last = where.split(".")
            section = config["quantization_config"]
            for name in path:
                section = section[name]
            section[last] = value
            write_json(folder / "config.json", config)
            return read_grids(ModelFolder(folder))

        return read

    def test_as_it_was_written(self, grids):
        assert {str(grid) for grid in grids("ignore", []).values()} == {"int4 g32 sym"}

    @pytest.mark.parametrize(
        ("where", "value", "words"),
        [
            ("config_groups", None, "config_groups: Input should be"),
            ("config_groups", {"group_0": []}, "not valid: .*preset scheme"),
            ("config_groups", {"g": {"targets": ["re:(("], "weights": {"num_bits": 4}}}, "not valid: targets: missing"),
            ("config_groups.group_0.targets", 5, "targets: Input should be"),
            ("config_groups.group_0.weights", None, "is not weight-only integers"),
            (
                "config_groups.group_0.weights",
                {},
                "pack-quantized by tensor; only pack-quantized by channel or group can be read",
            ),
            ("config_groups.group_0.weights.group_size", "x", "not valid"),
            ("config_groups.group_0.weights.num_bits", 8, r"weight_packed is I32 \(64, 8\).*int8 g32 sym.*\(64, 16\)"),
            ("config_groups.group_0.weights.num_bits", 99, "bits = 99: a grid has 2 to 8 bits"),
            ("config_groups.group_0.weights.num_bits", "x", "num_bits: Input should be"),
            ("config_groups.group_0.weights.group_size", 64, r"weight_scale is BF16 \(64, 2\).*g64.*\(64, 1\)"),
            ("config_groups.group_0.weights.symmetric", False, "no tensor for .*weight_zero_point"),
            ("config_groups.group_0.weights.type", "float", "is not weight-only integers"),
            ("config_groups.group_0.input_activations", {"num_bits": 8}, "is not weight-only integers"),
            ("config_groups.group_0.output_activations", {"num_bits": 8}, "is not weight-only integers"),
            ("config_groups.group_0.format", "naive-quantized", "naive-quantized by group; only pack-quantized"),
            ("format", "naive-quantized", "format = 'naive-quantized'; only pack-quantized can be read"),
            ("format", 5, "format: Input should be"),
            ("quant_method", ["gptq"], "only auto-round, awq, compressed-tensors, .*, safetensors can be read"),
            ("ignore", 5, "ignore: Input should be"),
        ],
    )
    def test_malformed_sections(self, grids, where, value, words):
        with pytest.raises(JettisonError, match=words):
            grids(where, value)

    def test_a_target_without_end(self, grids, monkeypatch):
        """The regular expression takes exponential time."""
        monkeypatch.setattr("jettison.formats.compressed_tensors.TARGET_SECONDS", 0.2)
        with pytest.raises(JettisonError, match="matching model.layers.0.self_attn.q_proj takes more than 0.2 seconds"):
            grids("config_groups.group_0.targets", ["re:([a-z0-9_.]+)+!$"])

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.float32, torch.int16, torch.bool], ids=str)
    def test_shapes_that_are_no_whole_numbers(self, packed, tmp_path, dtype):
        folder = shutil.copytree(packed, tmp_path / "packed")
        tensors = load_file(folder / "model-00001-of-00003.safetensors")
        name = UP.replace("weight", "weight_shape")
        tensors[name] = tensors[name].to(dtype)
        save_file(tensors, folder / "model-00001-of-00003.safetensors", {"format": "pt"})
        with pytest.raises(JettisonError, match=r"weight_shape is stored as (C64|F32|I16|BOOL); valid: I64, I32"):
            read_grids(ModelFolder(folder))

    @pytest.mark.parametrize("target", ["nowhere", "model-00001-of-00003.safetensors"], ids=["nowhere", "itself"])
    def test_a_shard_that_leads_nowhere_is_made_again(self, packed, tiny, tmp_path, target):
        folder = shutil.copytree(packed, tmp_path / "packed")
        shard = folder / "model-00001-of-00003.safetensors"
        (folder / "jettison.json").unlink()
        shard.unlink()
        shard.symlink_to(target)
        compress(tiny("llama"), RTN, folder)
        assert shard.read_bytes() == (packed / shard.name).read_bytes() and not shard.is_symlink()

    def test_a_link_that_leads_nowhere_has_no_size(self, packed, tmp_path):
        folder = shutil.copytree(packed, tmp_path / "packed")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_model.safetensors").symlink_to("nowhere")
        assert measure_size(folder) == measure_size(packed)

    def test_groups_by_activation_order_would_be_read_wrongly(self, packed, tmp_path):
        folder = shutil.copytree(packed, tmp_path / "packed")
        tensors = load_file(folder / "model-00001-of-00003.safetensors")
        tensors[UP.replace("weight", "weight_g_idx")] = torch.arange(64, dtype=torch.int32)
        save_file(tensors, folder / "model-00001-of-00003.safetensors", {"format": "pt"})
        with pytest.raises(JettisonError, match="groups by activation order"):
            read_grids(ModelFolder(folder))

    def test_a_type_of_scales_that_no_grid_has(self, packed, tmp_path):
        folder = shutil.copytree(packed, tmp_path / "packed")
        tensors = load_file(folder / "model-00001-of-00003.safetensors")
        name = UP.replace("weight", "weight_scale")
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        save_file(tensors, folder / "model-00001-of-00003.safetensors", {"format": "pt"})
        with pytest.raises(JettisonError, match="weight_scale is stored as F8_E4M3; valid: BF16, F16, F32"):
            read_grids(ModelFolder(folder))
