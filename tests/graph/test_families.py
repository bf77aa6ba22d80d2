"""Every family: its anatomy, reading it from disk, and the walk block by block."""

import json

import pytest
import tiny as maker
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison.core.errors import JettisonError, UsageError
from jettison.graph.families import families
from jettison.graph.folder import ModelFolder
from jettison.graph.walk import Walk
from jettison.training.losses import head_of

FAMILIES = list(maker.CONFIGS)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 4096, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference(tiny, ids):
    """Return a function: family -> (model of transformers in float32, its logits). Each is made once."""
    references = {}

    def of(family):
        if family not in references:
            model = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
            with torch.no_grad():
                references[family] = model, model(ids).logits
        return references[family]

    return of


def test_the_rows_that_were_promised():
    assert set(families()) >= {
        "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma3_text", "gemma3", "gpt_oss", "opt", "gpt2",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_filled_skeleton_is_the_model_of_transformers(tiny, reference, ids, family):
    source = ModelFolder(tiny(family))
    model = source.new_skeleton()
    source.fill(model, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, reference(family)[1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_ends_where_the_model_does(tiny, reference, ids, family):
    model, logits = reference(family)
    walk = Walk(ModelFolder(tiny(family)), ids)
    for index in range(2):
        with walk.block(index):
            for number in range(len(walk.batches)):
                walk.advance(index, number)
        assert all(parameter.is_meta for parameter in walk.blocks[index].parameters())
    with torch.no_grad():
        assert torch.allclose(head_of(model)(torch.cat([*walk.head_inputs(walk.hidden)])), logits, atol=1e-4)


def test_spilled_activations_are_the_ones_in_memory(tiny, ids, tmp_path):
    walks = [Walk(ModelFolder(tiny("qwen3")), ids, twice=True, spill=spill) for spill in (None, tmp_path)]
    for walk in walks:
        with walk.block(0):
            for number in range(len(walk.batches)):
                walk.advance(0, number)
    assert all(torch.equal(kept, read) for kept, read in zip(walks[0].hidden, walks[1].hidden, strict=True))
    assert all(torch.equal(kept, read) for kept, read in zip(walks[0].original, walks[1].original, strict=True))
    assert not torch.equal(walks[1].hidden[0], walks[1].original[0])
    assert sorted(path.parent.name for path in tmp_path.rglob("*.bin")) == ["hidden", "original"]


@pytest.mark.parametrize("family", FAMILIES)
def test_anatomy(tiny, reference, family):
    anatomy = ModelFolder(tiny(family)).anatomy
    model, _ = reference(family)
    assert anatomy.blocks == 2
    assert anatomy.parameters == sum(parameter.numel() for parameter in model.parameters())
    roles = {role for linear in anatomy for role in linear.roles}
    assert roles >= {"q", "k", "v", "o", "up", "down", "head", "embed"}
    names = [linear.name for linear in anatomy]
    assert len(set(names)) == len(names)
    by_group = {}
    for linear in anatomy.of_block(0):
        by_group.setdefault(linear.fused.rpartition(".")[2], set()).update(linear.roles)
    assert by_group["qkv"] == {"q", "k", "v"}
    if "gate" in roles:
        assert by_group["gate_up"] >= {"gate", "up"}


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_share_a_grid_but_not_their_statistics(tiny, family):
    linears = [linear for linear in ModelFolder(tiny(family)).anatomy if "expert" in linear.roles]
    assert len(linears) == 2 * 4 * 3
    gates = [linear for linear in linears if linear.block == 0 and linear.roles[0] in ("gate", "up")]
    assert len({linear.fused for linear in gates}) == 1
    assert len({linear.inputs for linear in gates}) == 4


def test_a_checkpoint_of_the_bare_base_model(tiny, tmp_path):
    """gpt2 was first published with names that lack the prefix ``transformer.``."""
    folder = maker.make("gpt2", tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()}, folder / "model.safetensors"
    )
    source = ModelFolder(folder)
    source.fill(source.new_skeleton())


def test_scribe_is_bundled():
    source = ModelFolder("scribe")
    assert source.anatomy.parameters == 7_345_408
    assert source.tokenizer("It was").input_ids


def test_hub_names_go_to_the_hub(monkeypatch):
    import huggingface_hub

    requested = []

    def fetch(name, allow_patterns):
        requested.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(UsageError, match="the hub could not serve it: no network"):
        ModelFolder("Qwen/Qwen3-0.6B")
    assert requested == ["Qwen/Qwen3-0.6B"]


class TestBadFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        return maker.make("llama", tmp_path / "m")

    def test_no_such_model(self):
        with pytest.raises(UsageError, match="no model 'nowhere'"):
            ModelFolder("nowhere")

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        with pytest.raises(UsageError, match="has no config.json"):
            ModelFolder(folder)

    def test_config_is_not_json(self, folder):
        (folder / "config.json").write_text("{")
        with pytest.raises(JettisonError, match="not readable JSON"):
            ModelFolder(folder)

    def test_unknown_model_type(self, folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "perceptron"}))
        with pytest.raises(UsageError, match="cannot be used.*perceptron"):
            _ = ModelFolder(folder).anatomy

    def test_not_a_language_model(self, folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "detr"}))
        with pytest.raises(UsageError, match="no causal language model"):
            _ = ModelFolder(folder).anatomy

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").touch()
        with pytest.raises(UsageError, match=r"no model.safetensors.*\.bin"):
            _ = ModelFolder(folder).checkpoint

    @pytest.mark.parametrize("keep", [0, 7, 100, 50_000])
    def test_truncated_shard(self, folder, keep):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(JettisonError, match="model.safetensors is truncated or damaged"):
            _ = ModelFolder(folder).checkpoint

    def test_corrupted_header(self, folder):
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[8:200] = b"\xff" * 192
        file.write_bytes(data)
        with pytest.raises(JettisonError, match="truncated or damaged"):
            _ = ModelFolder(folder).checkpoint

    def test_missing_shard(self, folder):
        index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(JettisonError, match="model-00001-of-00002.safetensors is named by .* but missing"):
            _ = ModelFolder(folder).checkpoint

    def test_a_shard_outside_the_folder(self, folder):
        index = {"weight_map": {"x": "../secret.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(JettisonError, match="outside the folder"):
            _ = ModelFolder(folder).checkpoint

    def test_missing_tensor(self, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors")
        source = ModelFolder(folder)
        with pytest.raises(JettisonError, match="no tensor for model.layers.1.mlp.up_proj.weight"):
            source.fill(source.new_skeleton())

    def test_wrong_shape(self, folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(3)
        save_file(tensors, folder / "model.safetensors")
        source = ModelFolder(folder)
        with pytest.raises(JettisonError, match=r"model.norm.weight has shape \(3,\), the config asks for \(64,\)"):
            source.fill(source.new_skeleton())


def test_what_a_block_is_given_may_follow_from_the_tokens(tmp_path):
    """Gemma 4 passes embeddings of the tokens to every block, so the arguments differ between batches.

    The walk once used the arguments of the first batch for all: then the states of the second batch are wrong.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gemma4_text", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, global_head_dim=16, vocab_size=512, vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=16, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
    )  # fmt: skip
    config.architectures = ["Gemma4ForCausalLM"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    source = ModelFolder(tmp_path)
    tokens = torch.randint(512, (4, 12), generator=torch.Generator().manual_seed(1))
    walk = Walk(source, tokens, batch=2)
    for block in range(2):
        with walk.block(block):
            for number in range(len(walk.batches)):
                walk.advance(block, number)
    with torch.no_grad():
        states = []
        hook = model.model.layers[1].register_forward_hook(lambda _, __, output: states.append(output))
        model(tokens, use_cache=False)
        hook.remove()
    expected = states[0][0] if isinstance(states[0], tuple) else states[0]
    assert torch.allclose(torch.cat([walk.hidden[0], walk.hidden[1]]), expected, atol=1e-4)
    walk = Walk(source, tokens, batch=2)
    with walk.block(0):
        right = walk.output(0, 1)
        walk._calls[1] = walk._calls[0]  # the earlier fault: arguments of the first batch
        assert not torch.allclose(walk.output(0, 1), right, atol=1e-2)
