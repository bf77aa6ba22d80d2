"""Tiny pipelines of diffusers with random weights, one for each denoiser that Jettison knows."""

import json
from pathlib import Path

import torch

PIPELINES = ["unet", "dit", "pixart", "sd3", "flux"]
CLASSES = {
    "unet": ("UNet2DConditionModel", "unet", "StableDiffusionPipeline", "DDIMScheduler"),
    "dit": ("DiTTransformer2DModel", "transformer", "DiTPipeline", "DDIMScheduler"),
    "pixart": ("PixArtTransformer2DModel", "transformer", "PixArtAlphaPipeline", "DPMSolverMultistepScheduler"),
    "sd3": ("SD3Transformer2DModel", "transformer", "StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler"),
    "flux": ("FluxTransformer2DModel", "transformer", "FluxPipeline", "FlowMatchEulerDiscreteScheduler"),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
CONFIGS = {
    "unet": {
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8, "attention_head_dim": 8,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "dit": {**HEADS, "in_channels": 3, "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10},
    "pixart": {
        **HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2,
        "cross_attention_dim": 32, "caption_channels": 16,
    },
    "sd3": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2,
        "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 24, "pos_embed_max_size": 8,
    },
    "flux": {
        **HEADS, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 16,
        "pooled_projection_dim": 24, "guidance_embeds": True, "axes_dims_rope": (4, 4, 8),
    },
}  # fmt: skip


def save_pipeline(name: str, folder: Path) -> torch.nn.Module:
    """Write the pipeline ``name`` without text encoders and VAE, and return its denoiser."""
    import diffusers

    kind, part, pipeline, scheduler = CLASSES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, kind)(**CONFIGS[name]).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # gates that start at 0 would hide what a block computes
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder / part)
    getattr(diffusers, scheduler)().save_pretrained(folder / "scheduler")
    parts = {part: ["diffusers", kind], "scheduler": ["diffusers", scheduler], "vae": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}))
    return model


def add_text_encoder(folder: Path) -> None:
    """Add a tiny CLIP text encoder with its tokenizer to a U-Net's pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12).save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))


def add_vae(folder: Path) -> None:
    """Add a tiny VAE that enlarges latents by 2."""
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text()) | {"vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
