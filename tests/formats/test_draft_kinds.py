"""A draft model without some blocks: the blocks that stay keep their kind, whichever fields of the config say it."""

import json

import pytest
import tiny as maker
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from jettison.core.errors import UsageError
from jettison.formats.draft_model import write_draft_model
from jettison.formats.packed import UnpackedFolder
from jettison.graph.folder import ModelFolder
from jettison.graph.surgery import _kind

BASE = maker.COMMON | {"num_hidden_layers": 6}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
          "num_key_value_heads": 4, "head_dim": 8}  # fmt: skip
GENERATED = ("layer_types", "no_rope_layers", "mlp_layer_types", "moe_layers")  # files of older releases have none
CASES = {
    "qwen3_moe, listed": ("qwen3_moe", MOE | {"mlp_only_layers": [3]}, {}),
    "qwen3_moe, stepped": ("qwen3_moe", MOE | {"decoder_sparse_step": 2}, {}),
    "gemma3_text, pattern": ("gemma3_text", {"sliding_window": 16}, {"sliding_window_pattern": 3}),
    "qwen2, windows": ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2}, {}),
    "smollm3, interval": ("smollm3", {"no_rope_layer_interval": 2}, {"no_rope_layer_interval": 2}),
    "deepseek_v3, leading": (
        "deepseek_v3",
        LATENT | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                  "moe_intermediate_size": 32, "first_k_dense_replace": 3, "n_shared_experts": 1},
        {},
    ),
    "llama4_text, interleaved": (
        "llama4_text", {"num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96}, {},
    ),
    "lfm2, lists": ("lfm2", {"layer_types": ["conv", "full_attention"] * 3}, {}),
}  # fmt: skip


def make(folder, family, fields, older):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(BASE | fields))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    if older:
        written = {name: value for name, value in written.items() if name not in GENERATED} | older
    (folder / "config.json").write_text(json.dumps(written))
    return UnpackedFolder(folder)


@pytest.mark.parametrize("skip", [("0", "1"), ("1", "4"), ("2", "3", "5")], ids="-".join)
@pytest.mark.parametrize("case", CASES)
def test_blocks_keep_their_kind(tmp_path, case, skip):
    source = make(tmp_path / "model", *CASES[case])
    write_draft_model(source, skip, tmp_path / "draft")
    kept = [block for block in range(6) if str(block) not in skip]
    short = ModelFolder(tmp_path / "draft")
    before, after = (each.skeleton.get_submodule(source.anatomy.family.blocks) for each in (source, short))
    assert len(after) == len(kept)
    for place, number in enumerate(kept):
        assert _kind(after[place]) == _kind(before[number])
    assert len({str(sorted(map(str, _kind(block)))) for block in before}) > 1, "the model has blocks of several kinds"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32)
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.arange(1, 9).unsqueeze(0), use_cache=False).logits).all()


def test_what_a_config_cannot_say_is_refused(tmp_path):
    """Jamba says kinds by a period: after a block is left out, no period fits."""
    fields = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4, "mamba_d_state": 8}
    source = make(tmp_path / "model", "jamba", fields, {})
    with pytest.raises(
        UsageError, match="blocks of a jamba model cannot be left out: block 1 would become another kind"
    ):
        write_draft_model(source, ("0",), tmp_path / "draft")
