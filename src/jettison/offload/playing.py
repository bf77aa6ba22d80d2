"""Plays a sequence of frames through an account: what is sent, what is reused, and what the pictures lose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jettison.core.errors import UsageError
from jettison.offload.accounting import Account
from jettison.offload.split import SplitModel


@dataclass(frozen=True)
class Played:
    """What happened to a sequence.

    kinds: of every frame, ``fresh``, ``reused`` or ``local``.
    losses: of every frame.
    seen: for every secret in the order of time, what an observer saw of it: its latents, (draws, d).
    secrets: the secret of each entry of ``seen``.
    """

    kinds: tuple[str, ...]
    losses: torch.Tensor
    seen: tuple[torch.Tensor, ...]
    secrets: torch.Tensor

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.double().mean())

    def share(self, kind: str) -> float:
        """Return the share of frames of a kind."""
        return self.kinds.count(kind) / len(self.kinds)


@torch.no_grad()
def play(
    model: SplitModel, account: Account, frames: Sequence[Any], secrets: Sequence[int],
    loss: Callable[[Any, Any], float],
) -> Played:  # fmt: skip
    """Play frames in the order of time.

    frames: inputs of the model, each a batch of one frame. secrets: the secret of every frame; where it changes, the
        account begins a new one.
    loss: outputs and inputs -> a number.
    A frame that stays on the device is made of the local part alone. Raises UsageError for numbers that differ.
    """
    if len(frames) != len(secrets) or not len(frames):
        raise UsageError(f"{len(frames)} frames and {len(secrets)} secrets: as many are needed, and at least one")
    kinds, losses, seen, names, answer = [], [], [], [], None
    for number, (inputs, secret) in enumerate(zip(frames, secrets, strict=True)):
        if not number or secret != secrets[number - 1]:
            account.begin_secret()
            seen.append([])
            names.append(int(secret))
        kept, latents = model.encode(inputs)
        sent = account.frame(latents[0])
        if sent.kind == "fresh":
            seen[-1].append(sent.latent)
            answer = model.decode_offloaded(sent.latent[None].float())
        outputs = model.combine(model.decode_local(kept), None if sent.kind == "local" else answer)
        kinds.append(sent.kind)
        losses.append(float(loss(outputs, inputs)))
    return Played(tuple(kinds), torch.tensor(losses), tuple(map(torch.stack, seen)), torch.tensor(names))
