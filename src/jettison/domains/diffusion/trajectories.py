"""Runs of a denoiser on fixed seeds: what it reads at every step, and the images that it ends in.

- The denoiser is a function from rows (``graph.denoisers.pack``) to its prediction, so packed and full-precision
  models of all architectures go the same way.
- Classes are taken in turn. Text is encoded by the pipeline's own encoders. In a pipeline without them, conditions are
  standard normal numbers of a fixed seed: enough to compare two denoisers, not to judge images.
- ``run`` leaves guidance out. ``folder_sampling`` has it, in the batch. Both make one call of the denoiser per step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from jettison.core.errors import UsageError, guarded
from jettison.core.progress import bar
from jettison.domains.diffusion.pipelines import prompt_conditions
from jettison.domains.diffusion.sampling import start_noise
from jettison.graph.denoisers import pack, require_diffusers, shapes_of
from jettison.graph.folder import ModelFolder
from jettison.graph.layout import read_parts

Denoise = Callable[[torch.Tensor], torch.Tensor]  # rows (batch, numbers) -> prediction (batch, ...)
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TOKENS, SIDE = 8, 8  # of a condition; of a sample, where the config states no size
SCHEDULER, VAE = "scheduler", "vae"


@dataclass(frozen=True)
class Run:
    """One run of a denoiser.

    rows: what it read, step by step, each (seeds, numbers). times: the time of every step.
    sample: the result, (seeds, channels, height, width), latents or pixels.
    """

    rows: list[torch.Tensor]
    times: list[float]
    sample: torch.Tensor


def open_scheduler(source: ModelFolder) -> Any:
    """Read the pipeline's scheduler. Raises UsageError if there is none, or diffusers has no such class."""
    diffusers, folder = require_diffusers(), source.folder / SCHEDULER
    library, kind = read_parts(source.folder).get(SCHEDULER, ("", ""))
    known = getattr(diffusers, kind, None) if library == "diffusers" and not kind.startswith("_") else None
    if not (isinstance(known, type) and issubclass(known, diffusers.SchedulerMixin)):
        raise UsageError(f"{source.folder}: scheduler = {library}.{kind}: a scheduler of diffusers is needed")
    with guarded(f"{folder} cannot be used"):
        return known.from_pretrained(folder)


def sample_shape(source: ModelFolder) -> tuple[int, int, int]:
    """Return channels, height and width of a sample, small where the config states no size. For Flux, patches of 2 x 2
    are the channels, so height and width are in patches."""
    config = source.config
    side = getattr(config, "sample_size", None) or SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return config.in_channels, height, width


def inputs_for(
    source: ModelFolder, state: torch.Tensor, time: torch.Tensor, conditions: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return the rows for a state (batch, channels, height, width) at a time, a scalar of the scheduler."""
    kind, (_, height, width) = source.config.model_type, state.shape[1:]
    tokens = conditions["encoder_hidden_states"].shape[1] if "encoder_hidden_states" in conditions else 0
    first = next(iter(shapes_of(source.config, kind, height, width, tokens)))
    state = state.flatten(2).transpose(1, 2) if kind == "FluxTransformer2DModel" else state
    time = time.float() / 1000 if kind == "FluxTransformer2DModel" else time.float()  # Flux multiplies it by 1000
    inputs = {first: state, "timestep": time} | conditions
    return pack(source.config, kind, inputs, height, width, tokens)


def make_conditions(source: ModelFolder, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return all inputs but the state and the time, for ``count`` samples, without text encoders."""
    config, rng = source.config, torch.Generator().manual_seed(seed)
    _, height, width = sample_shape(source)
    shapes = list(shapes_of(config, config.model_type, height, width, TOKENS).items())[1:]
    conditions = {}
    for name, shape in shapes:
        if name == "timestep":
            continue
        if name == "class_labels":
            conditions[name] = torch.arange(count) % config.num_embeds_ada_norm
        elif name == "encoder_attention_mask":
            conditions[name] = torch.ones(count, *shape)
        elif name in ("added_cond_kwargs.time_ids", "added_cond_kwargs.resolution"):
            pixels = torch.tensor([8.0 * height, 8.0 * width])  # sizes in pixels: of the original, crop, and target
            ids = torch.cat([pixels, torch.zeros(2), pixels]) if shape == (6,) else pixels
            conditions[name] = ids.expand(count, -1)
        elif name in ("guidance", "added_cond_kwargs.aspect_ratio"):
            conditions[name] = torch.full((count, *shape), 3.5 if name == "guidance" else 1.0)
        else:
            conditions[name] = torch.randn(count, *shape, generator=rng)
    return conditions


def conditions_of(source: ModelFolder, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return all inputs but the state and the time, for ``count`` samples, with text encoders if there are any."""
    return make_conditions(source, count, seed) | (prompt_conditions(source, count) or {})


def walk(
    source: ModelFolder, scheduler: Any, predict: Predict, x: torch.Tensor, steps: int, seeds: Sequence[int]
) -> torch.Tensor:
    """Run a scheduler over ``steps`` steps. Gradients pass through.

    predict: the state and its time, a scalar of the scheduler -> the prediction, in the shape of the state.
    x: the noise that the run starts from, (samples, channels, height, width).
    seeds: of every sample, for schedulers that add noise.
    Returns the last state. Raises UsageError if the scheduler cannot run so many steps.
    """
    set_steps(source, scheduler, steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    rngs = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    extra = {"generator": rngs} if "generator" in signature(scheduler.step).parameters else {}
    for time in scheduler.timesteps:
        guess = predict(x, time)
        with guarded(f"the scheduler of {source.name} cannot run {steps} steps"):
            x = scheduler.step(guess, time, x, **extra).prev_sample.float()
    return x


def set_steps(source: ModelFolder, scheduler: Any, steps: int) -> int:
    """Set the steps of a scheduler. Returns how often a run calls the denoiser. Raises UsageError if it cannot."""
    # Flow matching shifts its times by the size of an image where the config asks for it.
    shifts = getattr(scheduler.config, "use_dynamic_shifting", False)
    with guarded(f"the scheduler of {source.name} cannot run {steps} steps"):
        scheduler.set_timesteps(steps, **({"mu": 1.0} if shifts else {}))
    return len(scheduler.timesteps)


def scaled(scheduler: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Return a state as the denoiser reads it."""
    return getattr(scheduler, "scale_model_input", lambda sample, _: sample)(x, time)


@torch.no_grad()
def run(source: ModelFolder, denoise: Denoise, *, count: int, steps: int, seed: int = 0) -> Run:
    """Run a denoiser from the noise of ``count`` seeds, which start at ``seed``, over ``steps`` steps.

    Raises UsageError if the scheduler cannot be used.
    """
    scheduler, conditions = open_scheduler(source), conditions_of(source, count, seed)
    rows: list[torch.Tensor] = []
    times: list[float] = []
    with bar("sample", set_steps(source, scheduler, steps)) as progress:

        def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            rows.append(inputs_for(source, scaled(scheduler, x, time), time, conditions))
            times.append(float(time))
            progress.advance()
            return as_state(source, denoise(rows[-1]).float().cpu(), x)

        seeds = range(seed, seed + count)
        sample = walk(source, scheduler, predict, start_noise(sample_shape(source), seeds), steps, seeds)
    return Run(rows, times, sample)


def as_state(source: ModelFolder, guess: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Return a prediction in the shape of the state. A predicted variance, in further channels, is dropped."""
    if source.config.model_type == "FluxTransformer2DModel":
        guess = guess.transpose(1, 2).reshape(state.shape)
    return guess[:, : state.shape[1]]


def open_vae(source: ModelFolder) -> Any:
    """Return the pipeline's VAE in float32; None if it has none that is known."""
    parts = read_parts(source.folder)
    diffusers, (library, kind) = require_diffusers(), parts.get(VAE, ("", ""))
    known = getattr(diffusers, kind, None) if library == "diffusers" and kind.startswith("Autoencoder") else None
    if known is None:
        return None
    with guarded(f"the VAE of {source.name} cannot be used"):
        return known.from_pretrained(source.folder / VAE, use_safetensors=True).eval().float()


def to_images(source: ModelFolder, vae: Any, sample: torch.Tensor) -> torch.Tensor | None:
    """Return images (batch, 3, height, width) from 0 to 1; None if there is no decoder for this sample.

    vae: from ``open_vae``. Samples of three channels are pixels from -1 to 1 where a pipeline has no VAE.
    """
    if vae is None:
        pixels = sample.shape[1] == 3 and VAE not in read_parts(source.folder)
        return (sample / 2 + 0.5).clamp(0, 1) if pixels else None
    if source.config.model_type == "FluxTransformer2DModel":
        sample = torch.nn.functional.pixel_shuffle(sample, 2)
    sample = sample / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    return (vae.decode(sample).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def decode(source: ModelFolder, sample: torch.Tensor) -> torch.Tensor | None:
    """Return images (batch, 3, height, width) from 0 to 1; None if the pipeline has no decoder for this sample."""
    vae = open_vae(source)
    with guarded(f"the VAE of {source.name} cannot be used"):
        return to_images(source, vae, sample)
