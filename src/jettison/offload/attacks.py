"""Attacks on what leaves the device: a guesser names the secret (such as the expression) of noised latents.

The guesser is strong: they know the covariance of the noise, and true latents of other frames with their secrets. There
are five attacks: the nearest known latent, the most likely secret, a trained network, the nearest reconstruction, and
any of them on the average of several draws of noise for the same latent. ``bench`` runs all of them.

Attacks of arXiv:2604.17476: nearest reconstruction and network. The others are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn.functional import cross_entropy

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.numerics.information import posterior_success
from jettison.offload.noise import Noise
from jettison.training.loop import Group, Plan, train

CONFIDENCE = 0.95
AT_ONCE = 512  # observations whose distances are computed together
HIDDEN, STEPS, BATCH, RATE = 128, 600, 256, 3e-3  # of the network
Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Success:
    """How often an attack was right, with its interval of 95 % (Clopper and Pearson)."""

    rate: float
    low: float
    high: float
    tries: int


def success_of(right: torch.Tensor, confidence: float = CONFIDENCE) -> Success:
    """Count the successes of independent tries, (tries,) bool. Raises UsageError for none."""
    if not len(right):
        raise UsageError("an attack without tries: at least one observation is needed")
    test = binomtest(int(right.sum()), len(right))
    interval = test.proportion_ci(confidence, method="exact")
    return Success(float(test.statistic), float(interval.low), float(interval.high), len(right))


def nearest(
    observed: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, known_labels: torch.Tensor,
    noise: Noise | None = None,
) -> Success:  # fmt: skip
    """Guess the secret of the nearest known latent.

    observed: noised latents (n, d); labels: their secrets (n,). known: true latents (m, d); known_labels: (m,).
    noise: measures distances in units of its size in each direction; None measures them as they are.
    """
    observed, known = _whitened(noise, observed), _whitened(noise, known)
    guesses = [known_labels[torch.cdist(part, known).argmin(1)] for part in observed.split(AT_ONCE)]
    return success_of(torch.cat(guesses) == labels)


def likeliest(
    observed: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, known_labels: torch.Tensor, noise: Noise,
    repeats: int = 1,
) -> Success:  # fmt: skip
    """Guess the secret with the largest likelihood: no attack is better if the known latents are all that there are.

    Arguments as ``nearest``. repeats: draws that each observation is the average of.
    """
    classes = int(known_labels.max()) + 1
    observed, known = _whitened(noise, observed), _whitened(noise, known)
    members = nn.functional.one_hot(known_labels, classes).bool()  # (m, classes)
    weights = torch.where(members, -members.sum(0).clamp(min=1).log(), -torch.inf)  # every secret weighs the same
    guesses = []
    for part in observed.split(AT_ONCE):
        logs = -0.5 * repeats * torch.cdist(part, known).square()  # (n, m)
        guesses.append((logs[:, :, None] + weights).logsumexp(1).argmax(1))
    return success_of(torch.cat(guesses) == labels)


def network(
    observed: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, known_labels: torch.Tensor,
    add: Callable[[torch.Tensor, torch.Generator], torch.Tensor], seed: int = 0, steps: int = STEPS,
    hidden: int = HIDDEN,
) -> Success:  # fmt: skip
    """Guess by a network of one hidden layer. It is trained on the known latents, with new noise in every step.

    Arguments as ``nearest``. add: makes observed latents of true ones.
    Source: arXiv:2604.17476, whose network has 128 hidden units, too, but sees one sample per expression.
    """
    sample = add(known, torch.Generator().manual_seed(seed))
    mean, scale = sample.mean(0), sample.std(0).clamp(min=1e-12)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = known.shape[1], hidden, int(known_labels.max()) + 1
        net = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))

    def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        noised = add(known[indices], torch.Generator().manual_seed(seed * 1_000_003 + step))
        return ((noised - mean) / scale).float(), known_labels[indices]

    batch = min(BATCH, len(known))
    plan = Plan(steps, batch, len(known), seed, betas=(0.9, 0.999), weight_decay=1e-3)
    with TemporaryDirectory() as folder:
        trained = train(
            _Classify(net), [Group(dict(net.named_parameters()), RATE)], fetch, plan, Path(folder) / "network",
            save_every=float("inf"), name="attack",
        )  # fmt: skip
    net.load_state_dict(trained)
    with torch.no_grad():
        guesses = net(((observed - mean) / scale).float()).argmax(1)
    return success_of(guesses == labels)


class _Classify(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.net(latents), labels)


@torch.no_grad()
def reconstruction(
    decode: Decode, observed: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, known_labels: torch.Tensor
) -> Success:
    """Decode noised latents, and guess the secret of the known latent whose decoded form is nearest.

    decode: what runs on the machine that is not trusted, latents (n, d) -> anything (n, ...). Others as ``nearest``.
    """
    flat = lambda latents: torch.cat([decode(part.float()).flatten(1) for part in latents.split(AT_ONCE)])
    return nearest(flat(observed), labels, flat(known), known_labels)


def averaged(noise: Noise, repeats: int, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the average of ``repeats`` noised copies of latents (n, d): what is seen if a secret is sent anew.

    One draw with a smaller deviation is taken: it has the distribution of the average.
    generator: see ``Noise.draw``. Returns (n, d) float64. Raises UsageError for fewer repeats than one.
    """
    check_number("repeats", repeats, 1, whole=True)
    return noise.clipped(latents) + noise.draw(len(latents), generator) / repeats**0.5


@dataclass(frozen=True)
class Result:
    """One attack on one kind of noise.

    attack: its name. repeats: draws of noise that were averaged.
    bound: how often any attack may be right, from the information of so many draws.
    """

    attack: str
    repeats: int
    success: Success
    bound: float

    @property
    def over(self) -> float:
        """By how much the lower end of the interval exceeds the bound; at most 0 means that the bound is kept."""
        return self.success.low - self.bound

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {"attack": self.attack, "repeats": self.repeats, "bound": self.bound} | asdict(self.success)


ATTACKS = ("nearest", "likeliest", "network", "reconstruction")


def bench(
    latents: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, known_labels: torch.Tensor, noise: Noise | None,
    *, decode: Decode | None = None, attacks: Sequence[str] = ATTACKS, repeats: Sequence[int] = (1,),
    tries: int = 2000, seed: int = 0, steps: int = STEPS,
) -> list[Result]:  # fmt: skip
    """Run attacks on latents, and return one result for every attack and number of repeats.

    latents: true ones (n, d) of frames that the guesser does not know; labels: their secrets (n,), 0 to the number of
        secrets - 1. known, known_labels: of the frames that the guesser knows.
    noise: None attacks latents without noise; ``likeliest`` is then left out, and every bound is 1. Bounds hold if the
        noise was made for the covariance of latents whose secrets are equally frequent, see ``balanced``.
    decode: see ``reconstruction``; None leaves it out.
    repeats: how many draws of noise for the same latent are averaged.
    tries: observations, drawn from the latents such that all secrets are equally frequent.
    Raises UsageError for an unknown attack, and for secrets without a frame.
    """
    classes = int(known_labels.max()) + 1
    if labels.unique().tolist() != list(range(classes)) or known_labels.unique().tolist() != list(range(classes)):
        raise UsageError(f"labels 0 to {classes - 1}: every one needs a frame that is attacked, and one that is known")
    for name in attacks:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
    rng = torch.Generator().manual_seed(seed)
    places = balanced(labels, classes, tries, rng)
    shrunk = lambda seen, count: seen if noise is None else noise.shrink(seen, count)
    results = []
    for count in repeats if noise is not None else (1,):
        add = (lambda true, generator: true.double()) if noise is None else partial(averaged, noise, count)
        seen, truth = add(latents[places], rng), labels[places]
        arguments = seen, truth, known.double(), known_labels
        run = {
            "nearest": lambda a=arguments: nearest(*a, noise),
            "likeliest": lambda a=arguments, n=count: likeliest(*a, noise, n),
            "network": lambda a=arguments, n=count, add=add: network(
                shrunk(a[0], n), *a[1:], lambda true, generator: shrunk(add(true, generator), n), seed, steps
            ),
            "reconstruction": lambda a=arguments, n=count: reconstruction(decode, shrunk(a[0], n), *a[1:]),
        }
        bound = 1.0 if noise is None else posterior_success(count * noise.budget, 1 / classes)
        missing = {"likeliest": noise is None, "reconstruction": decode is None}
        results += [Result(name, count, run[name](), bound) for name in attacks if not missing.get(name)]
    return results


def balanced(labels: torch.Tensor, classes: int, tries: int, rng: torch.Generator) -> torch.Tensor:
    """Return the places of ``tries`` frames, (tries,): secrets in turn, a random frame of each. labels: (frames,)."""
    frames = [torch.nonzero(labels == secret)[:, 0] for secret in range(classes)]
    picks = torch.randint(1 << 40, (tries,), generator=rng)
    return torch.stack([frames[n % classes][picks[n] % len(frames[n % classes])] for n in range(tries)])


def _whitened(noise: Noise | None, latents: torch.Tensor) -> torch.Tensor:
    return latents if noise is None else latents.double() @ noise.basis / noise.variances.sqrt()
