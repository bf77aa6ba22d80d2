"""How much Gaussian noise latents need, and in which directions, so that they tell at most a budget of information.

DAMP (distribution-aware minimal perturbation) of arXiv:2604.17476: the noise is aligned with the eigenvectors of the
latents' covariance. ``RULES`` are the ways to divide it. ``exact`` has the least total noise; ``waterfilling`` has the
least error after the receiver has made the best of the noised latents.

What the bound says: an observer who knows everything but the latents themselves, the covariance and the noise's
included, learns at most ``budget`` nats from one noised latent, on average over the latents. It holds as long as the
covariance that the noise was made for is nowhere smaller than the real one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from secrets import token_bytes

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import ndtri

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.numerics.information import gaussian_information
from jettison.offload.noised import Noised

LEAST, MOST = 1e-9, 1e6  # nats of a budget
FLOOR = 1e-6  # of the mean eigenvalue: below it, directions count as if they had so much variance


def linear(eigenvalues: torch.Tensor, budget: float) -> torch.Tensor:
    """Return σ_i² = √λ_i S / (2v), S = Σ √λ_j: the least noise for which even the linear bound ½ Σ λ_i / σ_i² is v.

    eigenvalues: λ (d,) float64, positive. budget: v, nats.
    Source: arXiv:2604.17476, as its bound implies it; its total is S² / (2v).
    """
    roots = eigenvalues.sqrt()
    return roots * roots.sum() / (2 * budget)


def exact(eigenvalues: torch.Tensor, budget: float) -> torch.Tensor:
    """Return the least noise for which the Gaussian information ½ Σ ln(1 + λ_i / σ_i²) is v.

    It is σ_i² = (−λ_i + √(λ_i² + 4cλ_i)) / 2, from the derivative of the Lagrangian; c is found numerically.
    Arguments as ``linear``. The linear bound is never smaller than the information, so ``linear`` needs more noise.
    Ours; no source.
    """

    def variances(log_c: float) -> torch.Tensor:
        c = torch.tensor(log_c, dtype=torch.float64).exp()
        # The same as above, without a difference of nearly equal numbers.
        return 2 * c * eigenvalues / (eigenvalues + (eigenvalues**2 + 4 * c * eigenvalues).sqrt())

    return variances(_solve(lambda log_c: _information(eigenvalues, variances(log_c)), eigenvalues, budget))


def isotropic(eigenvalues: torch.Tensor, budget: float) -> torch.Tensor:
    """Return the least noise that is equal in all directions and has the Gaussian information v; a baseline."""

    def variances(log_c: float) -> torch.Tensor:
        return torch.full_like(eigenvalues, 1.0) * torch.tensor(log_c, dtype=torch.float64).exp()

    return variances(_solve(lambda log_c: _information(eigenvalues, variances(log_c)), eigenvalues, budget))


def released(eigenvalues: torch.Tensor, budget: float) -> torch.Tensor:
    """Return λ_i S / (2v), as in the code of the paper's authors, which lacks the root: it may exceed the budget.

    That code also adds it in the coordinates of the latents instead of their eigenvectors, see ``make_noise``.
    """
    return eigenvalues * eigenvalues.sqrt().sum() / (2 * budget)


def waterfilling(eigenvalues: torch.Tensor, budget: float) -> torch.Tensor:
    """Return the noise for which the best linear guess, ``Noise.shrink``, has the least squared error.

    Every direction is known to the same error θ, and one with less variance than θ is not sent: it gets so much noise
    that it tells almost nothing. The total noise is therefore large, but the error, Σ λσ² / (λ + σ²), is the least that
    any noise with this information has. Arguments as ``linear``.
    Source: reverse water-filling, Cover and Thomas, Elements of information theory, section 10.3.3; its use is ours.
    """
    hidden = 1 - min(1e-6, 1e-3 * budget / len(eigenvalues))  # of a direction's variance, where it is not sent

    def variances(log_error: float) -> torch.Tensor:
        error = (eigenvalues * hidden).clamp(max=float(torch.tensor(log_error, dtype=torch.float64).exp()))
        return error * eigenvalues / (eigenvalues - error)

    return variances(_solve(lambda log_error: _information(eigenvalues, variances(log_error)), eigenvalues, budget))


RULES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "exact": exact, "linear": linear, "waterfilling": waterfilling, "isotropic": isotropic, "released": released,
}  # fmt: skip


def _information(eigenvalues: torch.Tensor, variances: torch.Tensor) -> float:
    return 0.5 * float(torch.log1p(eigenvalues / variances).sum())


def _solve(information: Callable[[float], float], eigenvalues: torch.Tensor, budget: float) -> float:
    """Return the logarithm of a size of noise at which the information is ``budget``; it falls as the size rises."""
    low = high = log(float(eigenvalues.max()))
    while information(low) < budget:
        low -= 4
    while information(high) > budget:
        high += 4
    return float(brentq(lambda size: information(size) - budget, low, high, xtol=1e-14, rtol=8.9e-16))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise for latents of a known covariance.

    basis: (d, d) float64, its columns are the directions of the noise; variances: (d,), along them.
    mean, latents: mean (d,) and covariance (d, d) of the latents that it was made for.
    budget: nats that one noised latent may tell. rule: a name of ``RULES``, or another kind of noise.
    clip: before the noise, latents are moved to within this distance of the mean; None for no limit.
    """

    basis: torch.Tensor
    variances: torch.Tensor
    mean: torch.Tensor
    latents: torch.Tensor
    budget: float
    rule: str
    clip: float | None = None

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance of the noise, (d, d)."""
        return self.basis * self.variances @ self.basis.T

    @property
    def trace(self) -> float:
        """The total variance of the noise."""
        return float(self.variances.sum())

    @property
    def spread(self) -> float:
        """The typical distance of a latent from the mean: the root of their total variance."""
        return float(self.latents.diagonal().sum()) ** 0.5

    def information(self, latents: torch.Tensor | None = None) -> float:
        """Return the nats that one noised latent tells at most, if latents have the covariance ``latents`` (d, d).

        latents: None means those that the noise was made for.
        """
        return gaussian_information(self.latents if latents is None else latents, self.covariance)

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw noise, (count, d) float64.

        generator: None takes the operating system's random numbers, which nobody can guess; a generator of torch can
        be computed by those who know its seed, and is for experiments that have to be repeatable.
        """
        return _normal((count, len(self.variances)), generator) * self.variances.sqrt() @ self.basis.T

    def add(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return latents (batch, d) with noise, each with its own. generator: see ``draw``."""
        return (self.clipped(latents) + self.draw(len(latents), generator)).to(latents.dtype)

    def clipped(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (batch, d) within ``clip`` of the mean, float64, still without noise."""
        moved = latents.double() - self.mean
        if self.clip is not None:
            moved = moved * (self.clip / moved.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
        return self.mean + moved

    def shrink(self, noised: torch.Tensor, repeats: int = 1) -> torch.Tensor:
        """Return the best linear guess at the latents, (batch, d): noised latents, moved towards the mean.

        repeats: draws that every noised latent is the average of.

        It tells no more than the noised latents, since it is computed from them alone. A decoder gets latents of the
        size that it knows, however much noise there is.
        """
        both = self.latents + self.covariance / repeats
        gain = torch.linalg.solve(both, self.latents)  # (d, d), for rows: (x − mean) @ gain
        return (self.mean + (noised.double() - self.mean) @ gain).to(noised.dtype)

    def protect(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return what may leave the device for latents (batch, d): noise is added, then they are shrunk."""
        return self.shrink(self.add(latents, generator))

    def send(self, latent: torch.Tensor, frame: int, generator: torch.Generator | None = None) -> Noised:
        """Return what may leave the device for the latent (d,) of a frame, with fresh noise. generator: see ``draw``.

        Raises UsageError for a latent that is not finite, or so large that it is not finite as float32.
        """
        return Noised(self.protect(latent[None], generator)[0].float().cpu().numpy(), frame)


def make_noise(
    covariance: torch.Tensor, budget: float, rule: str = "exact", mean: torch.Tensor | None = None,
    floor: float = FLOOR,
) -> Noise:  # fmt: skip
    """Make the noise for latents.

    covariance: of the latents, (d, d). mean: of the latents, (d,); 0 if None. Only ``Noise.shrink`` uses it.
    budget: nats that one noised latent may tell.
    rule: a name of ``RULES``. ``released`` puts the noise into the coordinates, the largest first, as the code of the
        paper's authors does; it keeps no budget.
    floor: directions with less variance than this share of the mean count as if they had so much. A direction without
        variance would get no noise, and any later movement in it would be seen.
    Raises UsageError for a budget or a rule that is not valid, and a covariance that is no covariance.
    """
    check_number("budget", budget, LEAST, MOST)
    check_number("floor", floor, 1e-12, 1)
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    size = len(covariance)
    covariance = covariance.detach().double()
    if covariance.shape != (size, size) or not size or not torch.isfinite(covariance).all():
        raise UsageError(f"covariance of shape {tuple(covariance.shape)}: a square matrix of finite numbers is needed")
    eigenvalues, basis = torch.linalg.eigh((covariance + covariance.T) / 2)
    average = float(eigenvalues.mean())
    if average <= 0 or float(eigenvalues.min()) < -1e-6 * float(eigenvalues.max()):
        raise UsageError(f"covariance with the eigenvalue {float(eigenvalues.min()):g}: none may be negative")
    eigenvalues = eigenvalues.clamp(min=floor * average)
    kept = basis * eigenvalues @ basis.T
    variances = RULES[rule](eigenvalues, float(budget))
    if rule == "released":
        basis, variances = torch.eye(size, dtype=torch.float64), variances.flip(0)
    mean = torch.zeros(size, dtype=torch.float64) if mean is None else mean.detach().double()
    return Noise(basis, variances, mean, kept, float(budget), rule)


def _normal(shape: tuple[int, int], generator: torch.Generator | None) -> torch.Tensor:
    if generator is not None:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    words = np.frombuffer(token_bytes(8 * shape[0] * shape[1]), dtype=np.uint64)
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52  # never 0 or 1
    return torch.from_numpy(ndtri(uniform)).reshape(shape)
