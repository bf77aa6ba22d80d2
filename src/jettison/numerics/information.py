"""What a noisy observation tells about a secret: Gaussian information, and how often a guess can be right.

Everything is in nats and float64.

Source: Xiao and Devadas, PAC privacy (arXiv:2210.03458), on which arXiv:2604.17476 (Privatar) builds.
"""

from math import inf, log

import torch
from scipy.optimize import brentq

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number

CLOSE = 1e-15  # absolute error of a probability


def gaussian_information(covariance: torch.Tensor, noise: torch.Tensor) -> float:
    """Return ½ ln det(I + Σ N⁻¹), the information between latents and latents plus Gaussian noise.

    It is exact for Gaussian latents, and an upper bound for any others with the same covariance: of all distributions
    with that covariance, the Gaussian has the largest entropy.
    covariance: Σ of the latents, (d, d). noise: N, (d, d), positive definite.
    Raises UsageError if N is not positive definite.
    """
    return 0.5 * float(torch.log1p(_ratios(covariance, noise)).sum())


def linear_bound(covariance: torch.Tensor, noise: torch.Tensor) -> float:
    """Return ½ tr(Σ N⁻¹), which is at least ``gaussian_information``, since ln(1 + x) ≤ x. Arguments as there."""
    return 0.5 * float(_ratios(covariance, noise).sum())


def largest_ratio(covariance: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest ratio of the variances of two covariances (d, d) over all directions.

    At most 1 means that ``covariance`` is nowhere larger than ``other``.
    """
    return float(_ratios(covariance, other).max())


def _ratios(covariance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the eigenvalues of Σ N⁻¹, (d,), without those that rounding made negative."""
    lower, failed = torch.linalg.cholesky_ex(noise.double())
    if failed:
        raise UsageError("the covariance of the noise is not positive definite: every direction needs noise")
    half = torch.linalg.solve_triangular(lower, covariance.double(), upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)  # L⁻¹ Σ L⁻ᵀ
    return torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0)


def success_information(success: float, prior: float) -> float:
    """Return the information that is needed to be right with probability ``success`` instead of ``prior``, in nats.

    It is the Kullback-Leibler divergence of two coins, p ln(p / q) + (1 − p) ln((1 − p) / (1 − q)).
    """
    check_number("success", success, 0, 1)
    _check_prior(prior)
    rest = 0.0 if success == 1 else (1 - success) * log((1 - success) / (1 - prior))
    return (0.0 if success == 0 else success * log(success / prior)) + rest


def posterior_success(information: float, prior: float) -> float:
    """Return how often a guess can be right at most, on average over the secrets, with so much information.

    information: between the secret and all that is observed, in nats.
    prior: how often the best guess is right without observing anything; 1 / n for n equally likely secrets.
    Returns the largest p whose divergence from the prior is at most the information; 1 if any guess may be right.
    Raises UsageError for information below 0, or a prior that is not between 0 and 1.
    Source: Fano's inequality; arXiv:2210.03458, theorem 1.
    """
    check_number("information", information, 0, inf) if information != inf else None
    _check_prior(prior)
    if information >= -log(prior):
        return 1.0
    # The divergence is 0 at the prior and rises from there to −ln(prior) at 1.
    return float(brentq(lambda p: success_information(p, prior) - information, prior, 1.0, xtol=CLOSE, rtol=8.9e-16))


def _check_prior(prior: float) -> None:
    if isinstance(prior, bool) or not isinstance(prior, int | float) or not 0 < prior < 1:
        raise UsageError(f"prior = {prior!r}: a probability between 0 and 1 is needed, such as 1 / 40")
