"""Sampling as a function with gradients: from the indices of samples to their images.

A pipeline of diffusers turns gradients off around its ``__call__``; the function inside that decorator is called here.
The run ends as soon as the last latents are there.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jettison.core.errors import UsageError
from jettison.domains.diffusion.denoisers import denoiser_of
from jettison.domains.diffusion.patches import Patches


class LatentsReady(Exception):
    """Ends a run of a pipeline from inside, once its last latents are there."""


Request = Callable[[Sequence[int]], Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """A way to sample.

    target: the pipeline, or the denoiser.
    scheduler: in use now.
    images: indices of samples -> (samples, channels, height, width), by as many calls of the denoiser as the scheduler
        has timesteps. Equal indices give equal noise. Gradients are not turned off inside.
    span: the difference between the largest and the smallest possible value of images; None means that of each sample.
    modules: everything whose weights must not get gradients.
    """

    target: Any
    scheduler: Any
    images: Callable[[Sequence[int]], torch.Tensor]
    span: float | None = None
    modules: tuple[nn.Module, ...] = ()

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser."""
        return denoiser_of(self.target)


def sampling_of(pipe: Any, request: Request, decode: bool = True) -> Sampling:
    """Return the sampling of an ordinary pipeline.

    request: indices of samples -> arguments of the pipeline for them, such as prompts, ``num_inference_steps``,
        ``guidance_scale``, and a new ``generator`` per sample, so that the noise depends on the index alone.
    decode: compare what the VAE decodes, from 0 to 1. Without it, or without a VAE, samples are latents.
    """
    has_vae = decode and getattr(pipe, "vae", None) is not None

    def images(indices: Sequence[int]) -> torch.Tensor:
        arguments = dict(request(indices))
        latents = last_latents(pipe, arguments)[: len(indices)]  # DiT's pipeline doubles its latents for guidance
        if latents.ndim == 3:  # Flux packs patches into tokens
            scale = pipe.vae_scale_factor
            size = [arguments.get(side) or pipe.default_sample_size * scale for side in ("height", "width")]
            latents = pipe._unpack_latents(latents, *size, scale)
        if not has_vae:
            return latents
        return (
            checkpoint(_decode, pipe.vae, latents, use_reentrant=False)
            if latents.requires_grad
            else _decode(pipe.vae, latents)
        )

    modules = tuple(part for part in getattr(pipe, "components", {}).values() if isinstance(part, nn.Module))
    return Sampling(pipe, pipe.scheduler, images, 1.0 if has_vae else None, modules or (denoiser_of(pipe),))


def last_latents(pipe: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Run a pipeline with gradients up to its last latents.

    Raises UsageError if the run takes fewer steps than the scheduler has.
    """
    scheduler, patches, latents = pipe.scheduler, Patches(), []

    def stepping(original: Callable) -> Callable:
        def step(*args, **kwargs):
            result = original(*args, **kwargs)
            latents.append(result[0])
            if len(latents) >= len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0):
                raise LatentsReady
            return result

        return step

    bar = dict(getattr(pipe, "_progress_bar_config", None) or {})
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    patches.replace(scheduler, "step", stepping)
    try:
        with suppress(LatentsReady):
            unwrap(type(pipe).__call__)(pipe, **arguments)
            raise UsageError(
                f"{type(pipe).__name__} took {len(latents)} steps; its scheduler has {len(scheduler.timesteps)}"
            )
    finally:
        patches.undo()
        pipe._progress_bar_config = bar
    return latents[-1]


def _decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents. Returns images from 0 to 1."""
    config = vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    return (vae.decode(latents.to(next(vae.parameters()).dtype)).sample.float() / 2 + 0.5).clamp(0, 1)
