"""GGUF files as models: their tensors, configs and tokenizers."""

import gguf
import gguf_models
import numpy as np
import pytest
import tiny
import torch

import jettison
from jettison.core.errors import JettisonError, UsageError
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.container import GgufFile

IDS = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
FULL = ("F32", "F16", "BF16")
WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
DECODED = tuple(
    kind.name for kind in gguf.GGML_QUANT_SIZES if kind.name[0] in "QIMNT" and kind.name not in ("Q1_0", "Q8_1", "Q8_K")
    and kind.name not in ("I8", "I16", "I32", "I64")
)  # fmt: skip
# What no file states, because it is the same in all models of the architecture.
CHANGES = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7,
                    "layer_types": ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"]},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "qwen3_moe": {"norm_topk_prob": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def scribe(tmp_path_factory):
    """scribe as a GGUF file in float32."""
    return gguf_models.write("scribe", tmp_path_factory.mktemp("gguf") / "scribe.gguf")


@pytest.mark.parametrize("family", gguf_models.ARCHITECTURES)
def test_every_architecture_gives_the_logits_of_its_original(family, tmp_path, monkeypatch):
    """The tensors, their order, and all fields of the config that change outputs are the original's."""
    monkeypatch.setitem(tiny.CONFIGS, family, tiny.CONFIGS.get(family, tiny.COMMON))
    folder = tiny.make(family, tmp_path / "model", **CHANGES.get(family, {}))
    path = gguf_models.write(folder, tmp_path / "model.gguf")
    read = jettison.load(path, exact=True).logits(IDS)
    original = jettison.load(folder, dtype=torch.float32, exact=True).logits(IDS)
    assert (read - original).abs().max() <= 1e-4 * original.abs().max()


def test_scribe_is_the_same_model_in_a_file(scribe):
    source, original = ModelFolder(scribe), ModelFolder("scribe")
    assert torch.equal(jettison.load(scribe).logits(IDS), jettison.load("scribe", dtype=torch.float32).logits(IDS))
    assert source.license == "mit" and source.anatomy.parameters == original.anatomy.parameters
    text = "It was 1999, the year of the 2 whales.\n\n  \tIshmaël?<|endoftext|>"
    assert source.tokenizer(text).input_ids == original.tokenizer(text).input_ids
    assert source.tokenizer.decode(source.tokenizer(text).input_ids) == text


@pytest.mark.parametrize("kind", [*FULL, *WRITTEN])
def test_types_that_the_package_writes_read_back_as_it_decodes_them(kind, tmp_path):
    """Every matrix equals the package's dequantizer, bit by bit, and is on its grid where it has one."""
    path = gguf_models.write("scribe", tmp_path / "scribe.gguf", kind)
    source, reader = ModelFolder(path), gguf.GGUFReader(path)
    grids = read_grids(source)
    assert bool(grids) == (kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for ours, name in {"model.embed_tokens": "token_embd", "model.layers.3.mlp.down_proj": "blk.3.ffn_down"}.items():
        value = source.read(f"{ours}.weight")
        assert torch.equal(value.float(), torch.from_numpy(stored[f"{name}.weight"].copy()).float())
        assert torch.equal(source.checkpoint.read(f"{ours}.weight", slice(5, 9)), value[5:9])
        if ours in grids:
            from jettison.formats.gguf import read_weight

            weight = read_weight(source.read, ours, grids[ours])
            assert torch.equal(weight.dequantize(), value)
            packed = sum(part.nbytes for part in weight.parts().values())
            assert packed == source.checkpoint.bytes_of(f"{ours}.weight")


@pytest.mark.parametrize("kind", DECODED)
def test_random_blocks_of_every_type_decode_as_the_package_does(kind, tmp_path):
    width, _ = gguf.GGML_QUANT_SIZES[gguf_models.KINDS[kind]]
    blocks = gguf_models.random_blocks(kind, 6, 2 * max(width, 256))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=gguf_models.KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    value = file.decode("blk.0.ffn_up.weight", file.blocks("blk.0.ffn_up.weight"))
    with np.errstate(all="ignore"):
        assert np.array_equal(value, gguf.dequantize(blocks, gguf_models.KINDS[kind]), equal_nan=True)
    assert value.shape == (6, 2 * max(width, 256)) and len(np.unique(value)) > 2


def test_a_model_in_several_files_is_read_from_any_of_them(scribe, tmp_path):
    gguf_models.write("scribe", tmp_path / "scribe.gguf", split=40)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    for part in (parts[0], parts[2]):
        source = ModelFolder(part)
        assert torch.equal(source.read("model.norm.weight"), ModelFolder(scribe).read("model.norm.weight"))
        assert source.tokenizer("a whale").input_ids == ModelFolder("scribe").tokenizer("a whale").input_ids
    parts[1].unlink()
    with pytest.raises(JettisonError, match="00002-of-00003.gguf is missing"):
        ModelFolder(parts[0])


def test_llama_3_positions_are_found_from_their_factors(tmp_path):
    rule = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    folder = tiny.make("llama", tmp_path / "model", rope_parameters=rule)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = ModelFolder(folder).config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    path = tmp_path / "model.gguf"
    tensors = gguf_models.tensors
    gguf_models.tensors = lambda *arguments: tensors(*arguments) | {"rope_freqs.weight": (plain / scaled).numpy()}
    try:
        gguf_models.write(folder, path)
        read = ModelFolder(path).raw_config["rope_scaling"]
        assert read == {name: value for name, value in rule.items() if name != "rope_theta"}
        gguf_models.tensors = lambda *arguments: tensors(*arguments) | {"rope_freqs.weight": np.full(8, 3, np.float32)}
        gguf_models.write(folder, path)
        with pytest.raises(UsageError, match="follows no rule"):
            ModelFolder(path)
    finally:
        gguf_models.tensors = tensors


@pytest.mark.parametrize(
    "keys, reason",
    [
        ({"qwen3__rope__scaling__type": "longrope"}, "positions are scaled by 'longrope'"),
        ({"qwen3__rope__dimension_count": 32}, "positions rotate 32 of 64"),
        ({"qwen3__attention__head_count": [4] * 7 + [2]}, "differs from block to block"),
    ],
)
def test_what_would_change_outputs_and_cannot_be_read_is_refused(keys, reason, tmp_path):
    if "qwen3__attention__head_count" in keys:
        pytest.importorskip("gguf")
    with pytest.raises(JettisonError, match=reason):
        ModelFolder(_with_keys(tmp_path / "scribe.gguf", keys))


def _with_keys(path, keys):
    def replaced(self, key, value, kind, sub_type=None):
        self.kv_data[0].pop(key, None)
        return plain(self, key, value, kind, sub_type)

    plain = gguf.GGUFWriter.add_key_value
    gguf.GGUFWriter.add_key_value = replaced
    try:
        return gguf_models.write("scribe", path, "Q8_0", **keys)
    finally:
        gguf.GGUFWriter.add_key_value = plain


def test_a_tensor_or_an_architecture_that_is_not_known_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="unknown architecture 'mamba'.*valid: .*qwen3"):
        ModelFolder(tmp_path / "x.gguf")


def test_inspect_lists_types_bytes_and_runtimes(scribe, tmp_path):
    path = gguf_models.write("scribe", tmp_path / "scribe.gguf", "Q4_0", {"token_embd.weight": "Q8_0"})
    result = jettison.inspect(path)
    rows = {row["name"]: row for row in result["matrices"]}
    up = rows["model.layers.0.mlp.up_proj"]
    assert up == {"name": "model.layers.0.mlp.up_proj", "role": "up", "shape": [768, 256], "type": "Q4_0", "bits": 4.5,
                  "bytes": 768 * 256 * 18 // 32}  # fmt: skip
    assert rows["lm_head"]["type"] == "Q8_0" and rows["lm_head"]["bytes"] == 0
    assert sum(row["bytes"] for row in rows.values()) + result["other_bytes"] == result["bytes"]
    assert result["runtimes"]["jettison"]["loads"] and result["runtimes"]["llama.cpp"]["loads"]
    assert result["runtimes"]["vllm"]["loads"] is None  # its plugin for GGUF is a package of its own
    assert result["runtimes"]["onnxruntime"]["reasons"] == ["it reads onnx, not gguf"]
    plain = jettison.inspect("scribe")
    loads = {name: row["loads"] for name, row in plain["runtimes"].items()}
    assert loads == dict.fromkeys(loads, True) | {"llama.cpp": False, "onnxruntime": False}
    assert plain["matrices"][1]["bits"] == 16
