"""Sampling with the denoiser of a folder as the folder's pipeline would: its scheduler, conditions, guidance and VAE.

It serves every architecture, also pipelines without text encoders or VAE, and gradients pass through. A policy that is
attached to the denoiser, with the scheduler of the sampling, is at work.
"""

from collections.abc import Sequence
from inspect import signature

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jettison.domains.diffusion.differentiable import Sampling
from jettison.domains.diffusion.pipelines import pipeline_class, prompt_conditions
from jettison.domains.diffusion.sampling import start_noise
from jettison.domains.diffusion.trajectories import (
    as_state,
    conditions_of,
    inputs_for,
    open_scheduler,
    open_vae,
    sample_shape,
    scaled,
    set_steps,
    to_images,
    walk,
)
from jettison.graph.denoisers import unpack
from jettison.graph.folder import ModelFolder

EMBEDDED = ("FluxTransformer2DModel",)  # denoisers that read the guidance scale as an input
TEXT = ("encoder_hidden_states", "pooled_projections", "added_cond_kwargs.text_embeds")  # inputs that stand for a text


def default_guidance(source: ModelFolder) -> float:
    """Return the guidance scale that the pipeline's class uses unless it is told another; 1 if it has none."""
    parameter = signature(pipeline_class(source).__call__).parameters.get("guidance_scale")
    return float(getattr(parameter, "default", None) or 1.0)


class FolderSampler:
    """Samples with a denoiser.

    source: the folder whose scheduler, conditions and VAE are used.
    denoiser: it, or a compressed form of it.
    count: how many samples there are, with the indices 0 to count - 1.
    guidance: the scale of classifier-free guidance; 1 turns it off.
    seed: sample i starts from the noise of seed + i.

    Without text encoders, conditions are random numbers, and zeros stand for the empty prompt.
    """

    def __init__(self, source: ModelFolder, denoiser: nn.Module, *, count: int, guidance: float, seed: int = 0):
        self.source, self.denoiser, self.guidance, self.seed = source, denoiser, guidance, seed
        self.conditions = conditions_of(source, count, seed)
        self.device = next(denoiser.parameters()).device
        self.vae = open_vae(source)
        if self.vae is not None:
            self.vae.to(self.device).requires_grad_(False)
        self.doubled = guidance > 1 and source.config.model_type not in EMBEDDED
        if "guidance" in self.conditions:
            self.conditions["guidance"] = torch.full_like(self.conditions["guidance"], guidance)
        self.empty = self._without() if self.doubled else {}

    def _without(self) -> dict[str, torch.Tensor]:
        """Return the inputs that differ without a condition, for one sample."""
        empty = {}
        if "class_labels" in self.conditions:
            empty["class_labels"] = torch.tensor([self.source.config.num_embeds_ada_norm])
        encoded = prompt_conditions(self.source, 1, ("",)) or {}
        for name in TEXT:
            if name in self.conditions:
                empty[name] = encoded.get(name, torch.zeros_like(self.conditions[name][:1]))
        return empty | encoded

    def sampling(self, steps: int, decode: bool = True) -> Sampling:
        """Return the sampling of ``steps`` steps.

        decode: compare what the VAE decodes. Without it, or without a decoder, samples are latents.
        """
        scheduler = open_scheduler(self.source)
        set_steps(self.source, scheduler, steps)

        def images(indices: Sequence[int]) -> torch.Tensor:
            latents = self._latents(scheduler, indices, steps)
            images = self._decoded(latents) if decode else None
            return latents if images is None else images

        has_images = decode and (self.vae is not None or self._decoded(torch.zeros(1, *self._shape)) is not None)
        modules = (self.denoiser,) if self.vae is None else (self.denoiser, self.vae)
        return Sampling(self.denoiser, scheduler, images, 1.0 if has_images else None, modules)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return sample_shape(self.source)

    def _latents(self, scheduler, indices: Sequence[int], steps: int) -> torch.Tensor:
        """Return the last state of every sample, (samples, channels, height, width). Equal indices have equal noise."""
        own = {name: value[list(indices)] for name, value in self.conditions.items()}
        if self.doubled:
            without = {name: value.expand(len(indices), *value.shape[1:]) for name, value in self.empty.items()}
            own = {name: torch.cat([without.get(name, value), value]) for name, value in own.items()}

        def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            state = scaled(scheduler, x, time)
            rows = inputs_for(self.source, torch.cat([state, state]) if self.doubled else state, time, own)
            guess = self.denoiser(**unpack(self.denoiser, rows.to(self.device)), return_dict=False)[0].float().cpu()
            if not self.doubled:
                return as_state(self.source, guess, x)
            without, guided = (as_state(self.source, half, x) for half in guess.chunk(2))
            return without + self.guidance * (guided - without)

        seeds = [self.seed + int(index) for index in indices]
        return walk(self.source, scheduler, predict, start_noise(self._shape, seeds), steps, seeds)

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor | None:
        latents = latents.to(self.device)
        if latents.requires_grad and self.vae is not None:
            return checkpoint(to_images, self.source, self.vae, latents, use_reentrant=False)
        return to_images(self.source, self.vae, latents)
