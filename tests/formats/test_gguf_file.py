"""GGUF files that we write: the same model for our reader, and bytes that the package gguf reads."""

import json

import gguf
import gguf_models
import pytest
import tiny as models
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, trainers
from tokenizers import models as tokenizers_models

from jettison import compress, load
from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.gguf_blocks import TYPES
from jettison.encodings.gguf_k_blocks import K_TYPES
from jettison.formats import gguf_file
from jettison.formats.gguf_file import refuses, write_gguf
from jettison.formats.gguf_types import fitting_kind, pack_rows, row_bytes, unpack_rows
from jettison.formats.packed import UnpackedFolder
from jettison.formats.peft import read_adapters
from jettison.formats.runtimes import find_runtime
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.container import GgufFile
from jettison.statistics.stats import Stats

IDS = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
RTN = lambda bits, size=32, **more: {
    "steps": [{"quantize": {"method": "rtn", "bits": bits, "group_size": size} | more}]
}
# What no file states, because it is the same in all models of the architecture.
CHANGES = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7,
                    "layer_types": ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"]},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "qwen3_moe": {"norm_topk_prob": True},
    "mistral": {"sliding_window": None},
}  # fmt: skip


def logits(model, **options):
    return load(model, exact=True, dtype=torch.float32, **options).logits(IDS)


def made(family, folder, **changes):
    models.CONFIGS.setdefault(family, models.COMMON)
    return models.make(family, folder, **(CHANGES.get(family, {}) | changes))


def reader_values(path):
    """Name -> values of every tensor, as the package gguf reads and decodes them."""
    return {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("family", gguf_models.ARCHITECTURES)
def test_every_architecture_reads_back_as_the_same_model(family, tmp_path):
    """Our reader gives the same logits. The package reads the names and values that the converter's rules give, which
    tests/gguf_models.py has once more."""
    folder = made(family, tmp_path / "model")
    assert refuses(ModelFolder(folder)) == []
    report = write_gguf(folder, tmp_path / "ours.gguf")
    original, read = logits(folder), logits(tmp_path / "ours.gguf")
    if family.startswith("gemma"):  # the file adds 1 to norms, which rounds them
        assert (read - original).abs().max() <= 1e-5 * original.abs().max()
    else:
        assert torch.equal(read, original)
    assert report["matrices"] == [] and report["relative_error"] == 0 and report["bytes"] > 0
    gguf_models.write(folder, tmp_path / "theirs.gguf")
    ours, theirs = reader_values(tmp_path / "ours.gguf"), reader_values(tmp_path / "theirs.gguf")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    metadata, expected = (GgufFile(tmp_path / f"{name}.gguf").metadata for name in ("ours", "theirs"))
    # transformers splits texts for qwen2 by its own rule, whatever tokenizer.json says
    for key in expected.keys() - {"general.license", *(["tokenizer.ggml.pre"] if family == "qwen2" else [])}:
        assert key in metadata, key
        if isinstance(expected[key], int | float | str):
            assert metadata[key] == expected[key], key


@pytest.mark.parametrize(
    "family, recipe, kind",
    [("llama", RTN(4, 64), "Q4_0"), ("llama", RTN(2, 64), "Q4_0"), ("qwen3_moe", RTN(8), "Q8_0")],
)
def test_grids_that_a_type_holds_are_stored_exactly(family, recipe, kind, tmp_path):
    """Rows of 64 and 96 weights have no K types, so grids of 2 and 3 bits keep their integers in Q4_0."""
    compress(made(family, tmp_path / "model"), recipe, tmp_path / "out")
    report = write_gguf(tmp_path / "out", tmp_path / "out.gguf")
    assert report["relative_error"] == 0 and report["types"][kind] > 10
    assert torch.equal(logits(tmp_path / "out.gguf"), logits(tmp_path / "out"))
    assert bool(report["fallbacks"]) == (recipe["steps"][0]["quantize"]["bits"] < 4)


def test_zero_points_become_minima_and_what_changed_is_reported(tmp_path):
    compress(made("qwen3", tmp_path / "model"), RTN(4, symmetric=False), tmp_path / "out")
    report = write_gguf(tmp_path / "out", tmp_path / "out.gguf")
    assert report["types"]["Q4_1"] == 15  # with the embedding, which is the head
    assert all(row["type"] == "Q4_1" and row["relative_error"] < 1e-3 for row in report["matrices"])
    ours, expected = logits(tmp_path / "out.gguf"), logits(tmp_path / "out")
    assert (ours - expected).abs().max() < 0.02 * expected.abs().max()


def test_two_bits_are_fitted_to_the_blocks_of_q2_k(tmp_path):
    """Scales have 4 bits there: the error is small beside that of 2 bits, and is stated as it is."""
    folder = made("qwen2", tmp_path / "model", hidden_size=256, intermediate_size=512)
    compress(folder, RTN(2, 64), tmp_path / "out")
    report = write_gguf(tmp_path / "out", tmp_path / "out.gguf")
    assert report["types"]["Q2_K"] == 13 and report["types"]["Q4_0"] == 2  # rows of o have 64 weights
    errors = {row["name"]: row["relative_error"] for row in report["matrices"]}
    assert len(errors) == 13 and all(0 < error < 0.05 for error in errors.values())
    name, values = "model.layers.1.mlp.up_proj", reader_values(tmp_path / "out.gguf")
    exact, stored = UnpackedFolder(tmp_path / "out").read(f"{name}.weight").float(), values["blk.1.ffn_up.weight"]
    assert errors[name] == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-4)


def test_rows_that_do_not_divide_take_the_next_type_and_one_note_says_so(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(gguf_file, "say", notes.append)
    folder = made("llama", tmp_path / "model")
    report = write_gguf(folder, tmp_path / "model.gguf", "Q4_K")
    assert report["types"] == {"Q4_1": 16, "F32": 5} and len(report["fallbacks"]) == 16
    assert len(notes) == 1 and "have rows that Q4_K does not divide: they are Q4_1" in notes[0]
    assert fitting_kind("Q4_0", 48) == "F16" and fitting_kind("Q6_K", 512) == "Q6_K"


@pytest.mark.parametrize("kind", [*TYPES, *K_TYPES])
def test_every_type_reads_as_the_package_decodes_it(kind):
    """A matrix of scribe: its values here and in the package agree, and are near the original."""
    weight = ModelFolder("scribe").read("model.layers.2.mlp.down_proj.weight")[:16].float()
    blocks = pack_rows(weight, kind)
    decoded = torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]).copy())
    assert torch.equal(unpack_rows(blocks, kind), decoded)
    bits = {**TYPES, **K_TYPES}[kind].bits
    assert float((decoded - weight).square().sum() / weight.square().sum()) < 3 * 4.0**-bits
    again = pack_rows(weight, kind, torch.ones(weight.shape[1]))
    assert torch.equal(unpack_rows(again, kind), decoded)


def test_runtimes_yaml_lists_the_types_as_they_are_written():
    """The kinds of llama.cpp: our types, with the bits that our files have."""
    kinds = {kind.name: kind for kind in find_runtime("llama.cpp").format.parts["linears"].kinds}
    assert kinds.keys() == {*TYPES, *K_TYPES}
    for name, kind in kinds.items():
        assert kind.bits_per_weight == row_bytes(name, 256) * 8 / 256
        assert kind.bits == ({**TYPES, **K_TYPES}[name].bits,)
        assert kind.columns_multiple_of == (256 if name in K_TYPES else 1)


def test_statistics_weight_the_error(tmp_path):
    folder, name = made("llama", tmp_path / "model"), "model.layers.0.mlp.down_proj"
    squares = torch.rand(96, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-3
    source = ModelFolder(folder)
    down = next(linear for linear in source.anatomy if linear.name == name)
    weight, error = source.read(f"{name}.weight").float(), {}
    stats = Stats(torch.diag(squares), 1)
    for label, statistics in (("none", None), ("name", {name: squares}), ("stats", {down.inputs: stats})):
        write_gguf(folder, tmp_path / f"{label}.gguf", "Q4_0", statistics)
        values = reader_values(tmp_path / f"{label}.gguf")["blk.0.ffn_down.weight"]
        error[label] = float(((values - weight).square() * squares).sum())
    assert error["name"] == error["stats"] < 0.9 * error["none"]


def test_a_gguf_file_is_written_again(tmp_path):
    folder = made("llama", tmp_path / "model")
    gguf_models.write(folder, tmp_path / "one.gguf", "Q4_1")
    report = write_gguf(tmp_path / "one.gguf", tmp_path / "two.gguf")
    one, two = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("one", "two"))
    theirs = {tensor.name: tensor.data.tobytes() for tensor in one.tensors}
    assert report["relative_error"] == 0
    assert all(theirs[tensor.name] == tensor.data.tobytes() for tensor in two.tensors)
    assert ModelFolder(tmp_path / "two.gguf").license == "mit"
    text = "a whale of 1851"
    assert ModelFolder(tmp_path / "two.gguf").tokenizer(text).input_ids == ModelFolder(folder).tokenizer(text).input_ids


def test_tokenizer_chat_template_and_ends_of_texts_are_kept(tmp_path):
    folder = made("llama", tmp_path / "model", vocab_size=4128)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [0, 7, 9]}))
    write_gguf(folder, tmp_path / "model.gguf")
    ours, original = ModelFolder(tmp_path / "model.gguf"), ModelFolder(folder)
    text = "It was 1999, the year of the 2 whales.\n\n  \tIshmaël?<|endoftext|>"
    assert ours.tokenizer(text).input_ids == original.tokenizer(text).input_ids
    assert ours.tokenizer.chat_template == template
    assert json.loads((ours.companions / "generation_config.json").read_text())["eos_token_id"] == [0, 7, 9]
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][4127] == "[PAD4127]"
    assert metadata["tokenizer.ggml.token_type"].tolist()[4096:] == [5] * 32  # unused
    assert metadata["tokenizer.ggml.pre"] == "smollm"


def test_a_tokenizer_of_sentencepiece_is_kept_with_scores_for_merges(tmp_path):
    """Byte fallback, a space before the text, and merges that a reader recovers from the scores."""
    text = "the whale in the sea, the whaler by the seaside; a seal and the sealer are there, there"
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(tokenizers_models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.normalizer = space
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=[*special, *(f"<0x{n:02X}>" for n in range(256))])
    tokenizer.train_from_iterator([text] * 3, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    folder = made("llama", tmp_path / "model", vocab_size=352, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    report = write_gguf(folder, tmp_path / "model.gguf")
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "llama" and metadata["tokenizer.ggml.add_space_prefix"]
    assert metadata["tokenizer.ggml.token_type"].tolist()[:5] == [2, 3, 3, 6, 6]
    ours, original = ModelFolder(tmp_path / "model.gguf").tokenizer, ModelFolder(folder).tokenizer
    for words in ("the sea whale", "seals, whalers"):
        ids = original(words, add_special_tokens=False).input_ids
        assert ours(words, add_special_tokens=False).input_ids == ids and len(ids) < len(words)
    assert report["notes"] == [] or "a reader in Python" in report["notes"][0]


def test_a_tokenizer_that_would_give_other_tokens_is_refused(tmp_path):
    folder = made("llama", tmp_path / "model")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation", "behavior": "Isolated"})
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="splits texts by a rule that GGUF has no name for"):
        write_gguf(folder, tmp_path / "model.gguf")
    values["pre_tokenizer"]["pretokenizers"].pop(0)
    values["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="would give other tokens"):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    "family, changes, reason",
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' cannot be held by GGUF's llama"),
        ("mistral", {"sliding_window": 8}, "sliding_window = 8 cannot be held"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob = False cannot be held"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar = 100 cannot be held"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters ="),
        ("olmoe", {}, "unknown model_type 'olmoe'"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before_anything_is_written(family, changes, reason, tmp_path):
    folder = made(family, tmp_path / "model", **changes)
    with pytest.raises(UsageError, match=reason):
        write_gguf(folder, tmp_path / "model.gguf")
    assert len(refuses(ModelFolder(folder))) == 1
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "rules",
    [
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ],
    ids=lambda rules: rules["rope_type"],
)  # fmt: skip
def test_scaled_positions_are_kept(rules, tmp_path):
    family = "mistral" if rules["rope_type"] == "linear" else "llama"
    folder = made(family, tmp_path / "model", rope_parameters=rules)
    write_gguf(folder, tmp_path / "model.gguf")
    expected = logits(folder)
    assert torch.equal(logits(tmp_path / "model.gguf"), expected)
    assert not torch.equal(expected, logits(made(family, tmp_path / "plain")))


def test_usage_is_checked(tmp_path):
    with pytest.raises(UsageError, match="must end with .gguf"):
        write_gguf("scribe", tmp_path / "model.bin")
    with pytest.raises(UsageError, match="unknown type 'Q4_K_M' of GGUF.*Q4_K"):
        write_gguf("scribe", tmp_path / "model.gguf", "Q4_K_M")


def test_a_weight_that_is_not_finite_in_its_type_leaves_no_file(tmp_path):
    folder = made("llama", tmp_path / "model")
    models.change(folder, model__layers__1__mlp__up_proj__weight=lambda weight: weight * 1e6)
    with pytest.raises(JettisonError, match="layers.1.mlp.up_proj .* not finite in F16"):
        write_gguf(folder, tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("family, plain", [("llama", False), ("qwen3_moe", True)])
def test_an_adapter_becomes_a_file_of_its_own(family, plain, tmp_path):
    """What a tensor's pair adds in the file's order, times alpha / rank, is what PEFT adds to the model's matrices."""
    folder = made(family, tmp_path / "model")
    rng, tensors = torch.Generator().manual_seed(0), {}
    names = [
        linear for linear in ModelFolder(folder).anatomy if linear.block is not None and "router" not in linear.roles
    ]
    names = [
        linear for linear in names if linear.role != "v" and not ("expert" in linear.roles and ".2." in linear.name)
    ]
    for linear in names:
        rank = 8 if linear.role == "q" and not plain else 4
        for half, shape in (("A", (rank, linear.columns)), ("B", (linear.rows, rank))):
            tensors[f"base_model.model.{linear.name}.lora_{half}.weight"] = torch.randn(shape, generator=rng)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": [linear.name for linear in names]}
    config |= {} if plain else {"use_rslora": True, "rank_pattern": {"q_proj": 8}}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    report = write_gguf(folder, tmp_path / "model.gguf", "F32")
    file = GgufFile(tmp_path / "model-adapter.gguf")
    assert report["adapter"] == str(file.path)
    assert file.metadata["general.type"] == "adapter" and file.metadata["adapter.type"] == "lora"
    alpha, values = file.metadata["adapter.lora.alpha"], reader_values(file.path)
    assert alpha == 6 if plain else alpha > 6
    base = reader_values(tmp_path / "model.gguf")
    changed = {name.removesuffix(".lora_a") for name in values if name.endswith("a")}
    assert changed <= base.keys() and len(values) == 2 * len(changed)
    for name in changed:  # add the adapter to the file's own weights
        a, b = values[f"{name}.lora_a"], values[f"{name}.lora_b"]
        base[name] = base[name] + b @ a * (alpha / a.shape[-2])
    dense = folder / "model.safetensors"
    merged = {name: ModelFolder(folder).checkpoint.read(name).float() for name in ModelFolder(folder).checkpoint}
    for name, a, b, _, scaling in read_adapters(folder, [linear.name for linear in names]):
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + b @ a * scaling
    save_file({name: value.contiguous() for name, value in merged.items()}, dense, {"format": "pt"})
    write_gguf(folder, tmp_path / "merged.gguf", "F32")
    expected = reader_values(tmp_path / "merged.gguf")
    assert all(torch.allclose(base[name], expected[name], atol=1e-4) for name in expected)
    assert not all(torch.equal(base[name], value) for name, value in reader_values(tmp_path / "model.gguf").items())


def test_the_same_model_gives_the_same_bytes(tmp_path):
    folder = made("qwen2", tmp_path / "model")
    for name in "ab":
        write_gguf(folder, tmp_path / f"{name}.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.engines
@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_llama_cpp_loads_it_and_gives_nearly_the_same_logits(kind, tmp_path):
    """F16 activations of some of its kernels, and 8-bit ones of others, explain the tolerance."""
    llama_cpp = pytest.importorskip("llama_cpp")
    write_gguf("scribe", tmp_path / "scribe.gguf", kind)
    ids = ModelFolder("scribe").tokenizer("It was the best of times, it was the worst of times").input_ids
    engine = llama_cpp.Llama(str(tmp_path / "scribe.gguf"), logits_all=True, n_ctx=128, verbose=False)
    assert engine.tokenize(b"It was the best of times, it was the worst of times", add_bos=False) == ids
    engine.eval(ids)
    theirs = torch.from_numpy(engine.scores[: len(ids)].copy())
    ours = load(tmp_path / "scribe.gguf", exact=True, dtype=torch.float32).logits(torch.tensor([ids]))[0]
    assert float((theirs - ours).norm() / ours.norm()) < 0.05
