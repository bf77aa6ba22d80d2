"""Generate images with a denoiser that is conditioned on classes, such as DiT; every image has a seed of its own.

- diffusers' DiTPipeline needs a VAE and ImageNet's null class (1000). This loop reads the null class from the config,
  and works on latents of a VAE or, without one, on pixels from -1 to 1.
- An image depends on its seed and class alone, but for rounding: not on the batch that it is generated in.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

BATCH = 100


def start_noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Return the noise that a run starts from, (len(seeds), *shape) float32: one generator per seed.

    shape: of one sample, (channels, height, width).
    """
    draw = lambda seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.stack([draw(seed) for seed in seeds])


@torch.no_grad()
def sample_classes(
    denoiser: nn.Module,
    scheduler: Any,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: float = 1.5,
    vae: nn.Module | None = None,
    batch: int = BATCH,
) -> torch.Tensor:
    """Generate images of classes with classifier-free guidance.

    denoiser: a DiTTransformer2DModel, or a module that is called like one and has its ``config``.
    scheduler: of diffusers; its steps are set anew for every batch.
    labels, seeds: the class and the seed of every image.
    guidance: factor on the difference between the noise with and without class; 1 turns guidance off.
    vae: decodes the result; without one the result is pixels.
    Returns (images, 3, height, width) float32 from 0 to 1, on the CPU.
    Source: guidance as in arXiv:2207.12598; a learned variance in further channels (arXiv:2212.09748) is ignored.
    """
    config, parameter = denoiser.config, next(denoiser.parameters())
    shape, images = (config.in_channels, config.sample_size, config.sample_size), []
    for start in range(0, len(seeds), batch):
        classes = torch.tensor(labels[start : start + batch], device=parameter.device)
        x = start_noise(shape, seeds[start : start + batch]).to(parameter.device)
        scheduler.set_timesteps(steps)
        x = x * scheduler.init_noise_sigma
        if guidance != 1:
            classes = torch.cat([classes, torch.full_like(classes, config.num_embeds_ada_norm)])
        # The noise of samplers that add some depends on the seeds of the batch.
        generator = torch.Generator(parameter.device).manual_seed(int(seeds[start]))
        extra = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(torch.cat([x, x]) if guidance != 1 else x, t).to(parameter.dtype)
            noise = denoiser(inputs, timestep=t.to(x.device).expand(len(inputs)), class_labels=classes).sample
            noise = noise.float()[:, : config.in_channels]  # the other channels, if any, are the variance
            if guidance != 1:
                with_class, without = noise.chunk(2)
                noise = without + guidance * (with_class - without)
            x = scheduler.step(noise, t, x, **extra).prev_sample
        if vae is not None:
            x = vae.decode((x / vae.config.scaling_factor).to(next(vae.parameters()).dtype)).sample.float()
        images.append((x / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(images)
