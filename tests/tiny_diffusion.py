"""Tiny random pipelines of every architecture of denoisers that can be cached, on 8x8 latents."""

from functools import partial

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

SAMPLERS = {
    "ddim": partial(diffusers.DDIMScheduler, clip_sample=False, steps_offset=1),
    "dpm": diffusers.DPMSolverMultistepScheduler,
    "plms": partial(diffusers.PNDMScheduler, skip_prk_steps=True, steps_offset=1),
    "pndm": partial(diffusers.PNDMScheduler, steps_offset=1),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler,
}
ARCHITECTURES = ("dit", "pixart", "sd3", "flux", "sd", "sdxl")
CHAINS = ("dit", "pixart", "sd3", "flux")


def noise(index, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + index))


def generators(indices):
    return [torch.Generator().manual_seed(int(index)) for index in indices]


def vae(channels=4, shift=0.1):
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), sample_size=8,
        shift_factor=shift,
    )  # fmt: skip


def dit(blocks=4):
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=blocks, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip


def pixart(blocks=4):
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=blocks, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12, norm_num_groups=4,
    )  # fmt: skip


def sd3(blocks=4):
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=blocks, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip


def flux(blocks=2):
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=blocks, num_single_layers=blocks, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=20, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def unet(xl=False):
    cross = dict(cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4, layers_per_block=1, sample_size=8)
    if xl:
        return diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), transformer_layers_per_block=(1, 1, 2),
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * 6 + 20, use_linear_projection=True, **cross,
        )  # fmt: skip
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16), down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3), **cross,
    )  # fmt: skip


def make(name, sampler=None, seed=0, **changes):
    """Return a pipeline, and request(indices, steps) -> the arguments of its call."""
    torch.manual_seed(seed)
    scheduler = SAMPLERS[sampler or ("flow" if name in ("sd3", "flux") else "ddim")]()
    none = dict.fromkeys(("tokenizer", "text_encoder"))
    embeds = lambda indices, width=12, offset=0: torch.stack([noise(int(i) + offset, 5, width) for i in indices])
    pooled = lambda indices, offset=0: torch.stack([noise(int(i) + offset, 20) for i in indices])

    def common(indices, steps):
        return dict(num_inference_steps=steps, generator=generators(indices))

    def text(indices, steps):
        return common(indices, steps) | dict(
            prompt_embeds=embeds(indices), negative_prompt_embeds=embeds(indices, offset=500), guidance_scale=3.0,
            height=8, width=8,
        )  # fmt: skip

    if name == "dit":
        pipe = diffusers.DiTPipeline(dit(**changes), vae(), scheduler)
        request = lambda indices, steps: common(indices, steps) | dict(class_labels=[int(i) % 10 for i in indices])
    elif name == "pixart":
        pipe = diffusers.PixArtAlphaPipeline(**none, vae=vae(), transformer=pixart(**changes), scheduler=scheduler)

        def request(indices, steps):
            mask = torch.ones(len(indices), 5)
            masks = dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask, negative_prompt=None)
            return text(indices, steps) | masks | dict(use_resolution_binning=False)

    elif name == "sd3":
        parts = none | dict.fromkeys(("tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3"))
        pipe = diffusers.StableDiffusion3Pipeline(sd3(**changes), scheduler, vae(), **parts)
        both = lambda indices: dict(
            pooled_prompt_embeds=pooled(indices), negative_pooled_prompt_embeds=pooled(indices, 500)
        )
        request = lambda indices, steps: text(indices, steps) | both(indices)
    elif name == "flux":
        parts = none | dict.fromkeys(("tokenizer_2", "text_encoder_2"))
        pipe = diffusers.FluxPipeline(scheduler, vae(), transformer=flux(**changes), **parts)
        pipe.vae_scale_factor = 1

        def request(indices, steps):
            given = text(indices, steps) | dict(pooled_prompt_embeds=pooled(indices), height=8, width=8)
            return {key: value for key, value in given.items() if not key.startswith("negative")}

    elif name == "sd":
        pipe = diffusers.StableDiffusionPipeline(
            vae(), **none, unet=unet(**changes), scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        request = text
    elif name == "sdxl":
        parts = none | dict.fromkeys(("tokenizer_2", "text_encoder_2"))
        pipe = diffusers.StableDiffusionXLPipeline(
            vae(), **parts, unet=unet(xl=True), scheduler=scheduler, add_watermarker=False
        )
        both = lambda indices: dict(
            pooled_prompt_embeds=pooled(indices), negative_pooled_prompt_embeds=pooled(indices, 500)
        )
        request = lambda indices, steps: text(indices, steps) | both(indices)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    enliven(pipe)
    return pipe, request


def enliven(pipe):
    """Give zero-initialized weights, which hide what blocks do, random values."""
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))


def images(pipe, request, indices=(0,), steps=4, **changes):
    """Run a pipeline. Returns images (samples, 3, height, width)."""
    return pipe(**(request(indices, steps) | dict(output_type="pt") | changes)).images
