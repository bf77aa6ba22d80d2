"""Random models of every family, small enough to be made in a test."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForCausalLM

from jettison.graph.find import BUNDLED

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
    "mixtral": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": COMMON
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "olmoe": COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
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
    "gemma": COMMON,
    "olmo2": COMMON,
    "stablelm": COMMON,  # has no row in families.yaml, so it is read generically
}


def make(family: str, folder: Path, seed: int = 0, **changes) -> Path:
    """Save a random model of ``family`` with scribe's tokenizer in ``folder``, and return the folder.

    changes: fields of the config.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(CONFIGS[family] | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # larger values than at initialization, so that errors show
            scale = 0.3 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape) * scale / (1 + ("embed" in name)))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED["scribe"] / name).read_bytes())
    return folder


VIT = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=4
)
VISION = {
    "vit": VIT,
    "deit": VIT,
    "resnet": dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic"),
    "convnext": dict(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2),
    "mobilenet_v2": dict(depth_multiplier=0.25),
}
CLASSES = ["cat", "dog", "frog"]
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.5],
}  # fmt: skip


def make_vision(family: str, folder: Path) -> Path:
    """Save a random image classifier of three classes, with random running statistics, and return its folder."""
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    config = AutoConfig.for_model(family, id2label=names, label2id={v: k for k, v in names.items()}, **VISION[family])
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model = (classes[0] if isinstance(classes, tuple) else classes)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.1 if parameter.dim() > 1 else 0.05))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape) * 0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def make_images(folder: Path, count: int = 12) -> Path:
    """Fill ``folder`` with a subfolder per class, of ``count`` random pictures each, and return it."""
    rng = torch.Generator().manual_seed(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(80 * label, 80 * label + 90, (40, 36, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number:02d}.png")
    return folder


def change(folder, **changes):
    """Replace tensors of a model: ``name=function``, with ``__`` for each dot in the name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, make in changes.items():
        name = name.replace("__", ".")
        tensors[name] = make(tensors[name])
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})
