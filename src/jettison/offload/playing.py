"""Plays a sequence of frames through an account: what is sent, what is reused, and what the pictures lose.

One loop serves studies, where the half runs in this process, and devices, where a worker runs it.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.offload.accounting import Account, noise_for
from jettison.offload.covariance import RunningCovariance
from jettison.offload.noised import Noised
from jettison.offload.service.half import SOLE, Half
from jettison.offload.split import SplitModel, plain_half

KINDS = ("fresh", "reused", "local", "late")
PATIENCE_S = 60.0  # for an answer, if frames do not come by the clock
LEAST_DRAWS = 4  # times d, before the covariance of what was sent says something


class Answers(Protocol):
    """What runs the half: ``service.blocking.BlockingRemoteHalf``, or ``InProcess``."""

    def submit(self, noised: Noised, deadline: float) -> dict[str, np.ndarray] | None:
        """Return the outputs of a frame by ``deadline``, in seconds of ``time.monotonic``, or None."""


class InProcess:
    """Runs the half in this process: what a worker would answer."""

    def __init__(self, half: Half):
        self.half = half

    def submit(self, noised: Noised, deadline: float) -> dict[str, np.ndarray]:
        """Return the outputs of a frame."""
        return {name: value[0] for name, value in self.half.run(noised.latent[None]).items()}


@dataclass(frozen=True)
class Played:
    """What happened to a sequence.

    kinds: of every frame: ``fresh``, made with the answer to a new draw of noise; ``reused``, with that to an earlier
        one; ``local``, of the local part alone, as nothing may be sent; ``late``, the same, as no answer came in time.
    losses: of every frame.
    seen: for every secret in the order of time, what an observer saw of it: its latents, (draws, d).
    secrets: the secret of each entry of ``seen``.
    spent: nats that the draws for each of these may have told.
    overspent: nats that a draw of the last noise tells beyond its budget, by the covariance of all that was sent, see
        ``Account.overspent``; None for fewer draws than 4 d, which say too little.
    behind: how often this process was more than a frame behind the clock, which then waited for it.
    """

    kinds: tuple[str, ...]
    losses: torch.Tensor
    seen: tuple[torch.Tensor, ...]
    secrets: torch.Tensor
    spent: tuple[float, ...]
    overspent: float | None
    behind: int = 0

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.double().mean())

    @property
    def returned(self) -> int:
        """How many secrets came back later: what was told each time adds up if an observer sees that they did."""
        return len(self.secrets) - len(self.secrets.unique())

    def share(self, kind: str) -> float:
        """Return the share of frames of a kind."""
        return self.kinds.count(kind) / len(self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        count = Counter(self.kinds)
        return {
            "frames": len(self.kinds), **{kind: count[kind] for kind in KINDS}, "loss": self.loss,
            "secrets": len(self.secrets), "returned": self.returned, "draws": sum(map(len, self.seen)),
            "spent_most": max(self.spent), "spent": sum(self.spent), "overspent": self.overspent, "behind": self.behind,
        }  # fmt: skip


@torch.no_grad()
def play(
    model: SplitModel, account: Account, frames: Sequence[Any], secrets: Sequence[int],
    loss: Callable[[Any, Any], float], *, answers: Answers | None = None, follow: RunningCovariance | None = None,
    fps: float | None = None, deadline_s: float | None = None,
) -> Played:  # fmt: skip
    """Play frames in the order of time.

    frames: inputs of the model, each a batch of one frame. secrets: the secret of every frame; where it changes, the
        account begins a new one.
    loss: outputs and inputs -> a number.
    answers: who runs the half; None means this process.
    follow: takes in the latents, and the noise of every new secret is made for its estimate; None keeps the noise.
    fps: frames per second of the clock; None plays as fast as it can. deadline_s: from a frame's arrival to its
        deadline; None means the time between two frames, or 60 s without a clock. The clock waits for a process that is
        more than a frame behind.

    A frame that stays on the device, or whose answer does not come in time, is made of the local part alone. A noised
    latent without an answer is sent again with the next frame that reuses it.
    Raises UsageError for numbers that differ.
    """
    if len(frames) != len(secrets) or not len(frames):
        raise UsageError(f"{len(frames)} frames and {len(secrets)} secrets: as many are needed, and at least one")
    if fps is not None:
        check_number("fps", fps, 0.001, 10_000)
    patience = deadline_s if deadline_s is not None else PATIENCE_S if fps is None else 1 / fps
    check_number("deadline_s", patience, 1e-6, 3600)
    answers = answers or InProcess(plain_half(model))
    kinds, losses, seen, names, spent, answer = [], [], [], [], [], None
    behind, period = 0, 0.0 if fps is None else 1 / fps
    model.combine(model.decode_local(model.encode(frames[0])[0]), None)  # the first run of a network is slow
    start = time.monotonic()
    with bar("play", len(frames)) as progress:
        for number, (inputs, secret) in enumerate(zip(frames, secrets, strict=True)):
            if not number or secret != secrets[number - 1]:
                fresh = follow is not None and follow.count > 1
                account.begin_secret(
                    noise_for(account.terms, follow.estimate(), follow.mean, account.noise.rule) if fresh else None
                )
                seen.append([])
                spent.append(0.0)
                names.append(int(secret))
            arrival = time.monotonic() if fps is None else start + number * period
            if (lag := time.monotonic() - arrival) > period and fps is not None:
                start, arrival, behind = start + lag, arrival + lag, behind + 1
            time.sleep(max(0.0, arrival - time.monotonic()))
            kept, latents = model.encode(inputs)
            sent = account.frame(latents[0])
            if follow is not None:
                follow.update(latents)
            if sent.kind == "fresh":
                seen[-1].append(torch.tensor(sent.noised.latent))
                spent[-1], answer = account.spent, None
            if sent.noised is not None and answer is None:
                answer = answers.submit(sent.noised, arrival + patience)
            offloaded = None if sent.noised is None or answer is None else torch.tensor(answer[SOLE])[None]
            outputs = model.combine(model.decode_local(kept), offloaded)
            kinds.append("late" if sent.noised is not None and answer is None else sent.kind)
            losses.append(float(loss(outputs, inputs)))
            progress.advance()
    overspent = account.overspent() if sum(map(len, seen)) >= LEAST_DRAWS * model.latents else None
    observed = tuple(map(torch.stack, seen))  # every secret begins with a draw
    return Played(tuple(kinds), torch.tensor(losses), observed, torch.tensor(names), tuple(spent), overspent, behind)
