"""Write models of transformers as GGUF files, with the package gguf's own writer, names and quantizers.

What llama.cpp's converter changes besides is done here as it does it: rows of queries and keys in pairs, norms plus 1,
GPT-2's matrices as (out, in), experts in one tensor.
"""

import json
from pathlib import Path

import gguf
import numpy as np

from jettison.graph.folder import ModelFolder

KINDS = gguf.GGMLQuantizationType
ARCHITECTURES = {
    "llama": "llama", "granite": "granite", "smollm3": "smollm3", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "olmo2": "olmo2", "phi3": "phi3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "gpt2": "gpt2", "mixtral": "llama", "gpt_oss": "gpt-oss",
}  # fmt: skip
PERMUTED = ("llama", "granite", "smollm3", "mixtral")
SCALES = {"embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
          "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale"}  # fmt: skip


def write(
    model: str | Path, path: Path, kind: str = "F32", kinds: dict | None = None, split: int = 0, tokens: int = 4096,
    **keys,
) -> Path:  # fmt: skip
    """Write a model folder as one GGUF file, or in several of at most ``split`` tensors. Returns the path.

    kind: the type of all matrices but those of the router; vectors are float32.
    kinds: tensor of the file -> another type.
    tokens: how many of scribe's tokens the vocabulary has, with the merges that give them.
    keys: metadata to add, with __ for each dot.
    """
    source = ModelFolder(model)
    config = source.config.get_text_config()
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type], split_max_tensors=split)
    _write_keys(writer, config)
    _write_tokenizer(writer, source, tokens)
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    for name, value in tensors(source, config).items():
        chosen = (kinds or {}).get(name, kind if _is_matrix(name, value) else "F32")
        if chosen == "F32":
            writer.add_tensor(name, value)
        else:
            data = gguf.quantize(value, KINDS[chosen])
            writer.add_tensor(name, data, raw_dtype=KINDS[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _is_matrix(name: str, value: np.ndarray) -> bool:
    return value.ndim > 1 and "gate_inp" not in name and name.endswith("weight")


def tensors(source: ModelFolder, config) -> dict[str, np.ndarray]:
    """Return the tensors of the file, float32, by their names."""
    kind, result, stacks = config.model_type, {}, {}
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name in source.checkpoint:
        value = source.checkpoint.read(name).float().numpy()
        if kind == "gpt_oss" and ".experts." in name:
            result |= _gpt_oss_experts(int(name.split(".")[2]), name.rpartition(".")[2], value)
            continue
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            stacks.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(
                (int(after.split(".")[0]), value)
            )
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        result[f"{stored}.weight" if name.endswith("sinks") else stored] = _converted(name, value, kind, config)
    for name, parts in stacks.items():
        value = np.stack([value for _, value in sorted(parts, key=lambda part: part[0])])
        result[names.get_name(name, try_suffixes=(".weight",))] = value
    return result


def _gpt_oss_experts(block: int, name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Split gate and up, whose columns alternate; matrices become (experts, out, in)."""
    part = "bias" if name.endswith("bias") else "weight"
    value = value if part == "bias" else value.swapaxes(1, 2)
    parts = {"down": value} if name.startswith("down") else {"gate": value[:, 0::2], "up": value[:, 1::2]}
    return {f"blk.{block}.ffn_{role}_exps.{part}": np.ascontiguousarray(half) for role, half in parts.items()}


def _converted(name: str, value: np.ndarray, kind: str, config) -> np.ndarray:
    if kind in PERMUTED and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        value = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        value = value + 1
    if kind == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        value = value.T
    return np.ascontiguousarray(value)


def _write_keys(writer: gguf.GGUFWriter, config) -> None:
    kind = config.model_type
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_license("mit")
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rules = config.rope_parameters
    if rules.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rules["factor"])
        writer.add_rope_scaling_orig_ctx_len(rules["original_max_position_embeddings"])
    writer.add_rope_freq_base(rules.get("full_attention", rules)["rope_theta"])
    if getattr(config, "sliding_window", None) and (kind.startswith("gemma") or kind == "gpt_oss"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "granite":
        for field, key in SCALES.items():
            writer.add_float32(f"granite.{key}", getattr(config, field))
    if kind in ("qwen3_moe", "mixtral", "gpt_oss"):
        writer.add_expert_count(config.num_experts if kind == "qwen3_moe" else config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if kind == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: gguf.GGUFWriter, source: ModelFolder, tokens: int) -> None:
    """Write scribe's tokenizer, which splits texts as smollm's does."""
    tokenizer = json.loads((source.folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[:tokens]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    known = set(vocabulary)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"] if "".join(pair) in known])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return random bytes (rows, bytes) of a type whose scales, float16, are small: every such block is valid."""
    width, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // width, size), np.uint8)
    scales = np.random.default_rng(seed + 1).uniform(0.001, 0.1, (rows, columns // width, 2)).astype(np.float16)
    halves = scales.view(np.uint8).reshape(rows, columns // width, 4)
    for at, half in SCALE_PLACES.get(kind, ((0, 0),)):
        at = at % size
        data[..., at : at + 2] = halves[..., 2 * half : 2 * half + 2]
    return data.reshape(rows, -1)


# Type -> places of the float16 numbers of a block, and which of two numbers is there.
SCALE_PLACES = {
    "Q4_1": ((0, 0), (2, 1)), "Q5_1": ((0, 0), (2, 1)), "Q2_K": ((80, 0), (82, 1)), "Q3_K": ((108, 0),),
    "Q4_K": ((0, 0), (2, 1)), "Q5_K": ((0, 0), (2, 1)), "Q6_K": ((208, 0),), "TQ1_0": ((52, 0),), "TQ2_0": ((64, 0),),
    "IQ1_M": (), "MXFP4": (), "NVFP4": (),
}  # fmt: skip
