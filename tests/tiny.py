"""Random models of every family, small enough to make in a test."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from jettison.graph.folder import BUNDLED

COMMON = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=4096, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip

CONFIGS = {
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": 8},
    "qwen2": COMMON,
    "qwen3": COMMON | {"tie_word_embeddings": True},
    "qwen3_moe": COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "phi3": COMMON,
    "gemma3_text": COMMON | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "opt": dict(
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=4096,
        max_position_embeddings=128,
        word_embed_proj_dim=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "gpt2": dict(n_embd=64, n_layer=2, n_head=4, vocab_size=4096, n_positions=128, bos_token_id=0, eos_token_id=0),
    "granite": COMMON | {"logits_scaling": 2.0},
    "stablelm": COMMON,  # no row in families.yaml: read generically
}


def make(family: str, folder: Path, seed: int = 0, **changes) -> Path:
    """Save a random model of ``family`` with scribe's tokenizer in ``folder``, and return the folder."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(CONFIGS[family] | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # spread out, so that mistakes show
            scale = 0.3 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape) * scale / (1 + ("embed" in name)))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED["scribe"] / name).read_bytes())
    return folder


def change(folder, **changes):
    """Replace tensors of a model by what a function makes of them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, make in changes.items():
        name = name.replace("__", ".")
        tensors[name] = make(tensors[name])
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})
