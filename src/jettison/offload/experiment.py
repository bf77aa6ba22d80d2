"""An avatar that is trained, noised and attacked: the study behind ``jettison offload attack`` and the benchmarks."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.domains.perception.avatars.frames import AvatarFrames, normalization
from jettison.domains.perception.avatars.synthetic import CAMERAS, SyntheticAvatars
from jettison.numerics.block_dct import block_dct
from jettison.numerics.information import posterior_success
from jettison.offload.accounting import Account, Terms
from jettison.offload.attacks import Result, balanced, bench
from jettison.offload.avatar import AvatarVAE, read_config
from jettison.offload.covariance import RunningCovariance, shortfall
from jettison.offload.local_dp import make_dp_noise
from jettison.offload.noise import Noise, make_noise
from jettison.offload.partition import (
    RELEASED,
    LinearLoss,
    Partition,
    by_energy,
    by_loss,
    by_order,
    by_search,
    component_energy,
    widths,
)
from jettison.offload.playing import Played, play
from jettison.offload.split import collect_latents
from jettison.offload.training import AT_ONCE, frame_losses, measure, train_avatar

CHOICES = ("energy", "loss", "search", "released")
FEW = 200  # frames by which components are chosen
REFERENCE = 1.0  # nats, for the proxy loss by which components are chosen
HALF_LIFE = 1e6  # latents: all weigh about the same
MOST_BALANCED = 4000  # latents of which a covariance is estimated at least


@dataclass(frozen=True)
class Setup:
    """What is trained, with small defaults that take some minutes on a processor.

    texture, grid, expressions, frames: of the synthetic avatar; frames are trained on, and half as many attacked.
    block: side of a block of the DCT. offloaded: how many of the block² components leave. choose: see ``choose``.
    latents, offloaded_latents, width, encoder_width: of the network; ``width`` is that of both branches together.
    steps, batch, rate, encoder: of the training.
    """

    texture: int = 32
    grid: tuple[int, int] = (14, 14)
    expressions: int = 20
    frames: int = 600
    block: int = 4
    offloaded: int = 12
    choose: str = "energy"
    latents: int = 24
    offloaded_latents: int = 16
    width: int = 8
    encoder_width: int = 16
    steps: int = 1500
    batch: int = 16
    rate: float = 2e-3
    encoder: str = "trained"
    seed: int = 0


def synthetic_frames(setup: Setup) -> tuple[AvatarFrames, AvatarFrames]:
    """Make the frames to train on, which the guesser knows, and those that are attacked."""
    check_number("frames", setup.frames, 2 * setup.expressions, 10**7, whole=True)
    avatars = SyntheticAvatars(setup.texture, setup.grid, setup.expressions, seed=setup.seed)
    frames = lambda count, seed: avatars.sample(torch.arange(count) % setup.expressions, seed)
    return frames(setup.frames, 1), frames(max(setup.frames // 2, setup.expressions), 2)


def shared_expressions(known: AvatarFrames, other: AvatarFrames) -> tuple[AvatarFrames, AvatarFrames]:
    """Keep the expressions that both have, and number them from 0. Raises UsageError if there are fewer than two."""
    shared = sorted(set(known.expression.tolist()) & set(other.expression.tolist()))
    if len(shared) < 2:
        raise UsageError(
            f"{len(shared)} expressions have frames to train on and to attack: 2 are needed; take more frames"
        )
    numbers = torch.tensor(shared)

    def kept(frames: AvatarFrames) -> AvatarFrames:
        part = frames[torch.isin(frames.expression, numbers)]
        return replace(part, expression=torch.searchsorted(numbers, part.expression))

    return kept(known), kept(other)


def choose(frames: AvatarFrames, setup: Setup) -> tuple[Partition, tuple[int, int]]:
    """Choose the components that leave, and divide the width of the decoders.

    ``energy``: those with the least; ``loss``: those that each alone have the least proxy loss, see ``LinearLoss``;
    ``search``: the set with the least proxy loss; ``released``: the order of the authors' code, for blocks of 4.
    """
    known = normalization(frames)
    components = block_dct((frames.average - known.texture_mean) / known.texture_std, setup.block)
    count, energy = setup.block**2, component_energy(components)
    few = components[torch.arange(min(FEW, len(frames))) * len(frames) // min(FEW, len(frames))]
    proxy = lambda: LinearLoss(few, setup.latents, setup.offloaded_latents, REFERENCE)
    if setup.choose == "released" and setup.block != 4:
        raise UsageError(f"block = {setup.block}: the released order of components is for blocks of 4")
    chosen = {
        "energy": lambda: by_energy(energy, setup.offloaded),
        "loss": lambda: by_loss(count, setup.offloaded, proxy()),
        "search": lambda: by_search(count, setup.offloaded, proxy(), seed=setup.seed),
        "released": lambda: by_order(RELEASED, setup.offloaded),
    }
    if setup.choose not in chosen:
        raise unknown("choose", setup.choose, CHOICES)
    partition = chosen[setup.choose]()
    return partition, widths(energy.sqrt(), partition, setup.width)


class Experiment:
    """An avatar in a folder: it is trained on the first use, or loaded.

    known: frames to train on, which the guesser knows; other: frames that are attacked. Both have all expressions.
    """

    def __init__(self, setup: Setup, folder: str | Path, known: AvatarFrames, other: AvatarFrames):
        self.setup, self.folder, self.known, self.other = setup, Path(folder), known, other
        self.secrets = int(known.expression.max()) + 1
        self.partition, shares = choose(known, setup)
        self.config = read_config({
            "texture": known.average.shape[-1], "vertices": known.mesh.shape[1], "block": setup.block,
            "offloaded": list(self.partition.offloaded), "latents": setup.latents,
            "offloaded_latents": setup.offloaded_latents, "width": shares[0], "offloaded_width": shares[1],
            "encoder_width": setup.encoder_width, "cameras": max(CAMERAS, int(known.camera.max()) + 1),
        })  # fmt: skip

    @cached_property
    def model(self) -> AvatarVAE:
        """The trained network."""
        setup = self.setup
        return train_avatar(
            self.known, self.config, self.folder, steps=setup.steps, batch=setup.batch, rate=setup.rate,
            seed=setup.seed, encoder=setup.encoder,
        )  # fmt: skip

    @cached_property
    def latents(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The offloaded latents of the known and of the other frames, without noise, (n, d) each."""
        batches = lambda frames: (frames[first : first + AT_ONCE] for first in range(0, len(frames), AT_ONCE))
        return collect_latents(self.model, batches(self.known)), collect_latents(self.model, batches(self.other))

    @cached_property
    def covariance(self) -> RunningCovariance:
        """The covariance of the latents of the known frames, as a device estimates it, all secrets equally frequent."""
        running = RunningCovariance(self.config.offloaded_latents, HALF_LIFE)
        running.update(self.latents[0][self._balanced(self.known)])
        return running

    def _balanced(self, frames: AvatarFrames) -> torch.Tensor:
        """Return places of frames, secrets in turn."""
        rng = torch.Generator().manual_seed(self.setup.seed)
        return balanced(frames.expression, self.secrets, max(MOST_BALANCED, len(frames)), rng)

    def shortfall(self) -> float:
        """Return by how much the estimate is too small for the other frames; at most 1 means that bounds hold."""
        other = self.latents[1][self._balanced(self.other)].double()
        return shortfall(torch.cov(other.T), self.covariance.estimate())

    def noise(self, budget: float, rule: str = "exact") -> Noise:
        """Make noise for the latents: a rule of ``noise.RULES``, or ``dp-replace``, ``dp-released``.

        The latter promise the same posterior success as the budget.
        """
        if rule.startswith("dp-"):
            prior = 1 / self.secrets
            return make_dp_noise(self.latents[0], posterior_success(budget, prior), prior, rule.removeprefix("dp-"))
        return make_noise(self.covariance.estimate(), budget, rule, self.covariance.mean)

    def losses(self, noise: Noise | None = None, local: bool = False) -> dict[str, float]:
        """Measure losses on the other frames, see ``training.measure``."""
        return measure(self.model, self.other, noise, local=local, seed=self.setup.seed)

    def attack(self, noise: Noise | None, **options: Any) -> list[Result]:
        """Attack the other frames, see ``attacks.bench``."""
        known, other = self.latents
        return bench(
            other, self.other.expression, known, self.known.expression, noise,
            **{"decode": torch.no_grad()(self.model.decode_offloaded), "seed": self.setup.seed} | options,
        )  # fmt: skip

    def play(self, terms: Terms, sequence: AvatarFrames, rule: str = "exact") -> Played:
        """Play consecutive frames under these terms; expressions are the secrets. The loss is as in ``losses``."""
        noise = self.noise(terms.budget, rule)
        account = Account(terms, noise, torch.Generator().manual_seed(self.setup.seed))

        def loss(outputs: Any, inputs: AvatarFrames) -> float:
            return float(sum(frame_losses(self.model, outputs, inputs.texture, inputs.mask, inputs.mesh)))

        frames = [sequence[number : number + 1] for number in range(len(sequence))]
        return play(self.model, account, frames, sequence.expression.tolist(), loss)

    def to_dict(self) -> dict[str, Any]:
        """Return what was trained, for JSON."""
        return {
            "setup": asdict(self.setup), "offloaded": list(self.partition.offloaded), "shortfall": self.shortfall(),
            "loss": self.losses()["loss"], "local_loss": self.losses(local=True)["loss"],
        }  # fmt: skip
