"""An avatar that is trained, noised and attacked: the study behind ``jettison offload attack`` and the benchmarks."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.core.files import write_json
from jettison.core.numbers import LAST_SEED, check_number
from jettison.core.validation import Fields, read_fields
from jettison.domains.perception.avatars.frames import AvatarFrames, normalization
from jettison.domains.perception.avatars.synthetic import CAMERAS, SyntheticAvatars
from jettison.numerics.block_dct import block_dct
from jettison.numerics.information import posterior_success
from jettison.offload.accounting import Account, Terms
from jettison.offload.attacks import Result, balanced, bench
from jettison.offload.avatar import AvatarVAE, Size, load_avatar, read_config
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

SETUP = "setup.json"
CHOICES = ("energy", "loss", "search", "released")
FEW = 200  # frames by which components are chosen
REFERENCE = 1.0  # nats, for the proxy loss by which components are chosen
HALF_LIFE = 1e6  # latents: all weigh about the same
FOLLOW = 3000.0  # latents, of an estimate that follows a drift
MOST_BALANCED = 4000  # latents of which a covariance is estimated at least


class Setup(Fields):
    """What is trained, with small defaults that take some minutes on a processor.

    texture, grid, expressions, frames: of the synthetic avatar; frames are trained on, and half as many attacked.
    block: side of a block of the DCT. offloaded: how many of the block² components leave. choose: see ``choose``.
    latents, offloaded_latents, width, encoder_width: of the network; ``width`` is that of both branches together.
    steps, batch, rate, encoder: of the training.
    """

    texture: Size = 32
    grid: Annotated[tuple[Size, Size], BeforeValidator(tuple)] = (14, 14)
    expressions: Size = 20
    frames: Size = 600
    block: Size = 4
    offloaded: Size = 12
    choose: str = "energy"
    latents: Size = 24
    offloaded_latents: Size = 16
    width: Size = 8
    encoder_width: Size = 16
    steps: Size = 1500
    batch: Size = 16
    rate: Annotated[float, Field(gt=0, le=1, description="a number above 0, up to 1, is needed")] = 2e-3
    encoder: str = "trained"
    seed: Annotated[int, Field(ge=0, le=LAST_SEED, description=f"a whole number from 0 to {LAST_SEED} is needed")] = 0


def read_setup(data: Mapping[str, Any], where: str = "") -> Setup:
    """Validate a setup. where: its file, for errors. Raises UsageError for unknown fields and wrong values."""
    say = lambda name, value, needed: f"{where}{': ' if where else ''}{name} = {value}: {needed}"
    return read_fields(Setup, data, say, "field", f" of {where}" if where else "")


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
    model: of the folder, if it is loaded already.
    """

    def __init__(
        self, setup: Setup, folder: str | Path, known: AvatarFrames, other: AvatarFrames, model: AvatarVAE | None = None
    ):
        self.setup, self.folder, self.known, self.other = setup, Path(folder), known, other
        self.secrets = int(known.expression.max()) + 1
        if model is not None:
            self.model, self.config, self.partition = model, model.config, model.partition
            return
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
        return self._estimate(HALF_LIFE)

    def _estimate(self, half_life: float) -> RunningCovariance:
        running = RunningCovariance(self.config.offloaded_latents, half_life)
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
            **{"decode": torch.no_grad()(self.model.offloaded), "seed": self.setup.seed} | options,
        )  # fmt: skip

    def play(
        self, terms: Terms, sequence: AvatarFrames, rule: str = "exact", follow: bool = False, **options: Any
    ) -> Played:
        """Play consecutive frames under these terms; expressions are the secrets. The loss is as in ``losses``.

        follow: whether the noise of every secret is made for the covariance as it is estimated then.
        options: of ``playing.play``. The same seed of the setup gives the same noise.
        """
        account = Account(terms, self.noise(terms.budget, rule), torch.Generator().manual_seed(self.setup.seed))
        if follow:
            options["follow"] = self._estimate(FOLLOW)

        def loss(outputs: Any, inputs: AvatarFrames) -> float:
            return float(sum(frame_losses(self.model, outputs, inputs.texture, inputs.mask, inputs.mesh)))

        frames = [sequence[number : number + 1] for number in range(len(sequence))]
        return play(self.model, account, frames, sequence.expression.tolist(), loss, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return what was trained, for JSON."""
        return {
            "setup": self.setup.model_dump(mode="json"), "offloaded": list(self.partition.offloaded),
            "shortfall": self.shortfall(), "loss": self.losses()["loss"], "local_loss": self.losses(local=True)["loss"],
        }  # fmt: skip


def train_synthetic(setup: Setup, folder: str | Path) -> Experiment:
    """Train a synthetic avatar, or load a finished one; ``open_synthetic`` finds it again. Raises as training does."""
    experiment = Experiment(setup, folder, *synthetic_frames(setup))
    _ = experiment.model
    write_json(experiment.folder / SETUP, setup.model_dump(mode="json"))
    return experiment


def open_synthetic(folder: str | Path) -> Experiment:
    """Open the folder of a synthetic avatar that ``train_synthetic`` finished; its frames are made again.

    Raises UsageError for a folder without one, JettisonError for damaged files or files of two avatars.
    """
    file = Path(folder) / SETUP
    if not file.is_file():
        raise UsageError(
            f"{folder} holds no trained synthetic avatar, it has no {SETUP}: make one with "
            "`jettison offload attack --out FOLDER`"
        )
    setup, model = read_setup(read_json(file), str(file)), load_avatar(folder)
    config = model.config
    mine = (config.texture, config.vertices, config.block, len(config.offloaded), config.offloaded_latents)
    rows, columns = setup.grid
    if mine != (setup.texture, rows * columns, setup.block, setup.offloaded, setup.offloaded_latents):
        raise JettisonError(f"{file} is of another avatar than {folder}")
    return Experiment(setup, folder, *synthetic_frames(setup), model)
