"""The account of what leaves the device: a limit per secret, shared by the draws of noise that it allows.

- The user gives a limit V in nats per secret, such as one expression while it lasts, and a number of draws N. Each
  fresh draw of noise may tell V / N. Draws add up at most: the noises are independent, so what N noised latents tell
  together is at most the sum of what each tells (chain rule), however the latents depend on each other.
- A noised latent is reused unchanged while the true one stays near, so it tells nothing new. At the limit, frames stay
  on the device until the next secret begins.
- The noise has to be made for the covariance of the latents that are sent. With ``delta``, these are latents after a
  move, which are farther from the mean than others. ``Account.overspent`` watches this.
- Times are seen, too. With ``delta`` = 0, draws come at fixed times, which tell nothing. With ``delta`` > 0, a draw
  depends on the latent, so the pattern of draws tells something: at most ``timing_bound``, which ``count_timing`` takes
  off the limit; ``timing`` measures it.

What the account does not count: that a new secret begins, which is seen; and whether two secrets are the same. If an
expression comes back and an observer can tell that it did, what both times told adds up. The caller begins a new secret
only where it is independent of the last.
"""

from dataclasses import dataclass
from math import inf, lgamma, log, log1p
from typing import Literal

import torch

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number, figures
from jettison.numerics.information import posterior_success
from jettison.offload.covariance import RunningCovariance
from jettison.offload.noise import LEAST, MOST, Noise, make_noise
from jettison.offload.noised import Noised

COUNTED = 100_000  # draws whose patterns are counted one by one
WATCHED = 10_000  # latents: half-life of the covariance of what was sent


@dataclass(frozen=True)
class Terms:
    """What the user grants.

    limit: V, nats that everything sent about one secret may tell.
    draws: N, fresh draws of noise for one secret at most.
    secrets: how many equally likely secrets there are, such as expressions.
    delta: a noised latent is reused while the true latent moved less than this, as a share of ``Noise.spread``.
    every: a fresh draw is allowed at every so many frames; those between reuse the last one.
    frames: for one secret at most; later ones stay on the device. None means no limit, which ``delta`` = 0 allows.
    count_timing: whether the pattern of draws counts against the limit, with the most that it can tell.
    Raises UsageError for values that are not valid, or if the pattern alone may tell as much as the limit.
    """

    limit: float
    draws: int = 1
    secrets: int = 40
    delta: float = 0.0
    every: int = 1
    frames: int | None = None
    count_timing: bool = False

    def __post_init__(self) -> None:
        check_number("limit", self.limit, LEAST, MOST)
        check_number("draws", self.draws, 1, 10**9, whole=True)
        check_number("secrets", self.secrets, 2, 10**9, whole=True)
        check_number("delta", self.delta, 0)
        check_number("every", self.every, 1, 10**9, whole=True)
        if self.frames is not None:
            check_number("frames", self.frames, 1, 10**12, whole=True)
        if self.count_timing and self.timing_bound >= self.limit:
            raise UsageError(
                f"limit = {self.limit:g} nats: the pattern of draws may tell {figures(self.timing_bound)} nats alone; "
                "allow more, take a larger every, or delta = 0, whose pattern tells nothing"
            )

    @property
    def timing_bound(self) -> float:
        """The most that the pattern of draws can tell, in nats: the logarithm of the number of patterns.

        The first frame is always sent; of the other times at which a draw is allowed, up to N have an event: a draw,
        or the moment at which the limit is reached and nothing is sent any more. For very many places, the entropy
        bound of the number of patterns is taken, which is a little larger.
        """
        if self.delta == 0:
            return 0.0
        if self.frames is None:
            return inf
        places = -(-self.frames // self.every) - 1
        most = min(self.draws, places)
        if most == places:
            return places * log(2)
        if most > COUNTED:
            share = min(most / places, 0.5)
            return places * (-share * log(share) - (1 - share) * log1p(-share))
        logs = [lgamma(places + 1) - lgamma(k + 1) - lgamma(places - k + 1) for k in range(most + 1)]
        return float(torch.tensor(logs, dtype=torch.float64).logsumexp(0))

    @property
    def budget(self) -> float:
        """The nats that one noised latent may tell, v."""
        return (self.limit - (self.timing_bound if self.count_timing else 0.0)) / self.draws

    @property
    def success(self) -> float:
        """How often an observer guesses the secret at most, on average over the secrets."""
        return posterior_success(self.limit, 1 / self.secrets)

    def after(self, draws: int) -> float:
        """Return how often an observer of the first ``draws`` draws guesses the secret at most."""
        return posterior_success(min(draws, self.draws) * self.budget, 1 / self.secrets)


@dataclass(frozen=True)
class Decision:
    """What the account decides about one frame.

    kind: ``fresh``: send ``noised``. ``reused``: ``noised`` is the last one with the same noise, so its answer can be
        used again. ``local``: send nothing.
    noised: of this frame; None if nothing may be sent.
    draws: fresh draws for this secret so far.
    """

    kind: Literal["fresh", "reused", "local"]
    noised: Noised | None
    draws: int


class Account:
    """Decides for every frame of one device what may leave, and counts it.

    noise: for the latents of this device, with a budget of at most ``terms.budget``.
    generator: see ``Noise.draw``; None outside experiments.
    number: of the next frame; numbers rise over all secrets.
    Raises UsageError for noise that tells more than the terms allow.
    """

    def __init__(self, terms: Terms, noise: Noise, generator: torch.Generator | None = None):
        self.terms, self.generator = terms, generator
        self.number = 0
        self._watched = RunningCovariance(len(noise.variances), WATCHED, shrinkage=0, floor=1e-12, margin=1)
        self.begin_secret(noise)

    def begin_secret(self, noise: Noise | None = None) -> None:
        """Begin a new secret, which has the whole limit.

        noise: new noise, from a newer estimate of the covariance. It changes only here: noise whose size follows the
            latents of a secret would tell about them.
        """
        if noise is not None and noise.budget > self.terms.budget * (1 + 1e-9):
            allowed = figures(self.terms.budget)
            raise UsageError(f"noise with a budget of {figures(noise.budget)} nats: these terms allow {allowed} a draw")
        self.noise = noise or self.noise
        self.draws = self.frames = 0
        self.stopped = False
        self._true: torch.Tensor | None = None
        self._sent: Noised | None = None

    @property
    def spent(self) -> float:
        """The nats that were spent on this secret by draws, without their pattern."""
        return self.draws * self.noise.budget

    def frame(self, latent: torch.Tensor) -> Decision:
        """Decide about the next frame.

        latent: the true one, (d,).
        """
        number, name = self.frames, self.number
        self.frames, self.number = self.frames + 1, self.number + 1
        if self.terms.frames is not None and number >= self.terms.frames:
            self.stopped = True
        if self.stopped:
            return Decision("local", None, self.draws)
        if self._sent is not None and (number % self.terms.every or self._near(latent)):
            return Decision("reused", self._sent.again(name), self.draws)
        if self.draws >= self.terms.draws:  # once for all: to send again when the latent returns would tell that it did
            self.stopped = True
            return Decision("local", None, self.draws)
        if not torch.isfinite(latent).all():
            raise UsageError("a latent is not finite: the encoder is broken")
        self._watched.update(latent[None])
        self._true, self._sent = latent.detach().clone(), self.noise.send(latent, name, self.generator)
        self.draws += 1
        return Decision("fresh", self._sent, self.draws)

    def _near(self, latent: torch.Tensor) -> bool:
        return float((latent - self._true).norm()) < self.terms.delta * self.noise.spread

    def overspent(self, covariance: torch.Tensor | None = None) -> float:
        """Return how much more a draw tells than its budget, in nats, if latents have this covariance (d, d).

        covariance: None means that of the latents that were sent so far; at least several times d are needed.
        At most 0 while the covariance that the noise was made for is not too small.
        """
        return (
            self.noise.information(self._watched.estimate() if covariance is None else covariance) - self.noise.budget
        )


def describe(terms: Terms, noise: Noise | None = None, measured_timing: float | None = None) -> str:
    """Return the limit, the posterior success and the noise in words, as a few sentences.

    measured_timing: nats that the pattern of draws tells at least, see ``timing.measure_timing``.
    """
    prior, draws = 1 / terms.secrets, terms.draws
    covered = "everything that is sent" if terms.delta == 0 or terms.count_timing else "what is sent, but not when,"
    text = [
        f"Somebody who sees {covered} while one of {terms.secrets} secrets lasts, and knows how it was made, guesses "
        f"the secret right at most {_percent(terms.success)} of the time, on average over the secrets; "
        f"{_percent(prior)} without seeing anything.",
        f"The limit is {figures(terms.limit)} nats per secret, for "
        + ("one draw of noise." if draws == 1 else f"{draws:,} draws of noise, {figures(terms.budget)} nats each."),
    ]
    if terms.every > 1:
        text.append(f"A draw comes at most every {terms.every:,} frames; those between reuse the last one.")
    if terms.delta:
        text.append(
            f"A noised latent is reused while the true one moved less than {terms.delta:g} of the latents' spread. "
            + _timing(terms, measured_timing)
        )
    text.append("When the draws are used up, frames stay on the device until the next secret.")
    if noise is not None:
        share = noise.trace / noise.spread**2
        text.append(
            f"The noise has {figures(share)} times the variance of the latents ({figures(noise.trace)} against "
            f"{figures(noise.spread**2)}, rule {noise.rule})."
        )
        if (tells := noise.information()) > noise.budget * (1 + 1e-6):
            text.append(
                f"This rule does not keep its budget: a draw tells up to {figures(tells)} nats instead of "
                f"{figures(noise.budget)}, so none of the figures above are promised."
            )
    return " ".join(text)


def _timing(terms: Terms, measured: float | None) -> str:
    most = "without bound, since the number of frames has none"
    if terms.timing_bound < inf:
        most = f"at most {figures(terms.timing_bound)} nats"
    seen = "" if measured is None else f" (at least {figures(measured)} were measured)"
    counted = "which the limit includes" if terms.count_timing else "which the limit does not include"
    return f"The times of the draws depend on the latents and tell something themselves, {most}{seen}, {counted}."


def _percent(share: float) -> str:
    return f"{figures(100 * share)} %"


def noise_for(terms: Terms, covariance: torch.Tensor, mean: torch.Tensor | None = None, rule: str = "exact") -> Noise:
    """Return the noise of one draw under these terms, see ``noise.make_noise``."""
    return make_noise(covariance, terms.budget, rule, mean)
