"""Trains an avatar's network, and its decoders for a given noise; measures losses.

- The loss is the mean squared error of the mesh and of the texels that the camera sees, both normalized, and 0.01 times
  the divergence of the latents, each branch by its share of the components (arXiv:2604.17476). Its term for rendered
  pictures is left out: it needs a differentiable renderer; and so is the rule that skips a batch whose loss jumps: the
  loop limits the gradient instead. The learning rate follows the loop's cosine.
- ``encoder="released"`` does not train the offloaded encoder, as the code of the paper's authors: it is a random
  projection. By default it is trained.
- A training that was killed continues.
"""

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import unknown
from jettison.core.journal import Journal
from jettison.core.locks import locked
from jettison.core.numbers import check_number, check_seed
from jettison.domains.perception.avatars.frames import AvatarFrames, normalization
from jettison.numerics.block_dct import block_dct
from jettison.offload.avatar import AvatarConfig, AvatarVAE, Kept, load_avatar, save_avatar
from jettison.offload.noise import Noise
from jettison.offload.partition import component_energy
from jettison.offload.split import run, run_local
from jettison.training.loop import Group, Plan, train

ENCODERS = ("trained", "released")
DIVERGENCE = 0.01  # weight of the divergence of the latents
BATCH, RATE = 10, 3e-4  # of the paper
AT_ONCE = 32  # frames that are measured together
SAMPLE = 512  # frames from which the scales of the components are estimated


class AvatarLesson(nn.Module):
    """Maps average, texture, mask, mesh, view and camera of frames to the loss.

    noise: None samples the latents from their posterior; else the means of the offloaded ones get this noise, and
        only the decoders learn.
    """

    def __init__(self, model: AvatarVAE, noise: Noise | None = None):
        super().__init__()
        self.model, self.noise = model, noise

    def forward(
        self, average: torch.Tensor, texture: torch.Tensor, mask: torch.Tensor, mesh: torch.Tensor,
        view: torch.Tensor, camera: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        model, divergence = self.model, torch.zeros(())
        with torch.set_grad_enabled(self.noise is None):
            (local, local_log), (offloaded, offloaded_log) = model.encode_both(average, mesh)
        if self.noise is None:
            share = len(model.partition.offloaded) / model.partition.count
            divergence = (1 - share) * _divergence(local, local_log) + share * _divergence(offloaded, offloaded_log)
            local = local + local_log.exp() * torch.randn_like(local)
            offloaded = offloaded + offloaded_log.exp() * torch.randn_like(offloaded)
        else:
            offloaded = self.noise.protect(offloaded, torch.default_generator)
        outputs = model.combine(model.decode_local(Kept(local, view, camera)), model.offloaded(offloaded))
        texture_loss, mesh_loss = frame_losses(model, outputs, texture, mask, mesh)
        return texture_loss.mean() + mesh_loss.mean() + DIVERGENCE * divergence


def _divergence(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return the mean divergence of the latents from a standard normal distribution."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).mean()


def frame_losses(model, outputs, texture, mask, mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared errors of every frame, (batch,) each: of the seen texels, and of the mesh; both normalized.

    outputs: of ``AvatarVAE.combine``. texture: (batch, 3, side, side). mask: (batch, 1, side, side), 0 to 1, of texels
        that the camera sees. mesh: (batch, vertices, 3).
    """
    error = ((outputs.texture - texture) / model.texture_std).square() * mask
    vertices = ((outputs.mesh - mesh) / model.mesh_std).square().mean((1, 2))
    return error.sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3))).clamp(min=1), vertices


def new_avatar(frames: AvatarFrames, config: AvatarConfig, seed: int = 0) -> AvatarVAE:
    """Make a network with random weights, and mean, deviation and scales of these frames."""
    known = normalization(frames)
    few = frames.average[torch.arange(min(SAMPLE, len(frames))) * len(frames) // min(SAMPLE, len(frames))]
    maps = block_dct((few - known.texture_mean) / known.texture_std, config.block)
    scales = (component_energy(maps) / maps[0, 0].numel()).sqrt().clamp(min=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AvatarVAE(config, known, scales)


def train_avatar(
    frames: AvatarFrames, config: AvatarConfig, folder: str | Path, *, steps: int = 2000, batch: int = BATCH,
    rate: float = RATE, seed: int = 0, encoder: str = "trained", save_every: float = 60.0,
    note: Callable[[int, float], None] = lambda step, loss: None,
) -> AvatarVAE:  # fmt: skip
    """Train the network of an avatar and write it to a folder; a finished one is loaded instead.

    encoder: ``trained``, or ``released``: the offloaded encoder stays as it was initialized.
    note: called with every step and its loss.
    Raises UsageError for options that are not valid, and a folder that holds another training.
    """
    if encoder not in ENCODERS:
        raise unknown("encoder", encoder, ENCODERS)
    model = new_avatar(frames, config, seed)
    fixed = "encoder_offloaded." if encoder == "released" else None
    names = [name for name, _ in model.named_parameters() if fixed is None or not name.startswith(fixed)]
    identity = {"avatar": config.model_dump(), "encoder": encoder}
    return _train(
        AvatarLesson(model), names, frames, Path(folder), identity, steps, batch, rate, seed, save_every, note
    )


def train_for_noise(
    model: AvatarVAE, frames: AvatarFrames, noise: Noise, folder: str | Path, *, steps: int = 500, batch: int = BATCH,
    rate: float = RATE, seed: int = 0, save_every: float = 60.0,
    note: Callable[[int, float], None] = lambda step, loss: None,
) -> AvatarVAE:  # fmt: skip
    """Train the decoders on latents with noise, and write the network to a folder; a finished one is loaded instead.

    The encoders stay, so the covariance of the latents does, and with it the promise of the noise. ``model`` changes.
    Ours; no source.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith("encoder")]
    identity = {
        "avatar": model.config.model_dump(), "rule": noise.rule, "budget": noise.budget, "trace": noise.trace,
        "weights": _digest(*model.state_dict().values()),
    }  # fmt: skip
    lesson = AvatarLesson(model, noise)
    return _train(lesson, names, frames, Path(folder), identity, steps, batch, rate, seed, save_every, note)


def _train(
    lesson: AvatarLesson, names: list[str], frames: AvatarFrames, folder: Path, identity: dict[str, Any], steps: int,
    batch: int, rate: float, seed: int, save_every: float, note: Callable[[int, float], None],
) -> AvatarVAE:  # fmt: skip
    check_number("steps", steps, 1, whole=True)
    check_number("batch", batch, 1, whole=True)
    check_number("rate", rate, 1e-9, 1)
    check_seed(seed)
    model = lesson.model
    plan = Plan(steps, min(batch, len(frames)), len(frames), seed, betas=(0.9, 0.999), advice="lower the rate")
    run_of = {**identity, "frames": _digest(frames.average, frames.mesh), "steps": steps, "batch": batch, "rate": rate}
    with locked(folder):
        journal = Journal(folder / "journal.jsonl", run_of | {"seed": seed})
        if journal.last(done=True):
            return load_avatar(folder)

        def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
            part = frames[indices]
            return part.average, part.texture, part.mask, part.mesh, part.view, part.camera

        def record(step: int, loss: float) -> None:
            if step % max(1, steps // 100) == 0 or step + 1 == steps:
                journal.add(step=step, loss=round(loss, 6))
            note(step, loss)

        parameters = dict(model.named_parameters())
        state = folder / "training.safetensors"
        model.train()
        trained = train(
            lesson, [Group({name: parameters[name] for name in names}, rate)], fetch, plan, state,
            save_every=save_every, record=record, name="avatar",
        )  # fmt: skip
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(trained[name])
        save_avatar(folder, model.eval())
        journal.add(done=True)
        state.unlink(missing_ok=True)
    return model


def _digest(*tensors: torch.Tensor) -> str:
    hasher = blake2b(digest_size=8)
    for tensor in tensors:
        hasher.update(tensor.detach().cpu().contiguous().numpy())
    return hasher.hexdigest()


def measure(
    model: AvatarVAE, frames: AvatarFrames, noise: Noise | None = None, *, local: bool = False, seed: int = 0
) -> dict[str, float]:
    """Measure the mean losses of a network on frames: ``texture``, ``mesh``, and their sum, ``loss``.

    noise: on the offloaded latents; None for none. local: without the offloaded part.
    """
    generator, losses = torch.Generator().manual_seed(seed), []
    for first in range(0, len(frames), AT_ONCE):
        part = frames[first : first + AT_ONCE]
        outputs = run_local(model, part) if local else run(model, part, noise, generator=generator)
        losses.append(torch.stack(frame_losses(model, outputs, part.texture, part.mask, part.mesh)))
    texture, mesh = torch.cat(losses, 1).double().mean(1).tolist()
    return {"texture": texture, "mesh": mesh, "loss": texture + mesh}
