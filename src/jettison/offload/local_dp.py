"""The baseline: noise that a local Rényi differential privacy guarantee needs. It does not look at the distribution.

It bounds how often an observer of one noised latent is right, as ``noise`` does, but for every pair of latents instead
of on average: a stronger promise, which costs more noise.

Source: Mironov, Rényi differential privacy (arXiv:1702.07476); the formula as in the code of arXiv:2604.17476.
"""

from collections.abc import Iterable
from math import log

import torch

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.numerics.information import success_information
from jettison.offload.noise import Noise

ORDERS = range(2, 20)  # of the Rényi divergence, as in the released code
MANY_ORDERS = (*(1 + 2.0**exponent for exponent in range(-7, 0)), *range(2, 65), *(2**n for n in range(7, 31)))
SENSITIVITIES = ("replace", "released")


def renyi_variance(sensitivity: float, success: float, prior: float, orders: Iterable[float] = ORDERS) -> float:
    """Return the variance per coordinate for which an observer is right at most with probability ``success``.

    It is σ² = min over α of α c² / (2α / (α − 1) · ln γ − 2 ln κ), with c the sensitivity, γ the success, κ the prior:
    Gaussian noise has the divergence α c² / (2σ²) of order α, which turns the prior κ into at most γ.
    orders: the values of α that are tried, above 1.
    Raises UsageError if no order works: the success is too close to the prior.
    """
    check_number("sensitivity", sensitivity, 0)
    check_number("success", success, 0, 1)
    success_information(success, prior)  # checks the prior
    room = {order: 2 * order / (order - 1) * log(success) - 2 * log(prior) for order in orders} if success > 0 else {}
    fitting = [order * sensitivity**2 / value for order, value in room.items() if value > 0]
    if not fitting or success <= prior:
        raise UsageError(f"success = {success:g} with the prior {prior:g}: no order of the divergence reaches it")
    return min(fitting)


def sensitivity(latents: torch.Tensor, mean: torch.Tensor, kind: str = "replace") -> tuple[float, float | None]:
    """Return the sensitivity and the clip of latents (samples, d).

    kind: ``replace``: latents are clipped to the largest distance from the mean in the sample, c, so that any two are
        at most 2c apart. ``released``: the Frobenius norm of the whole sample, as in the code of the paper's authors;
        it grows with the number of samples, and nothing is clipped, so it is no guarantee.
    """
    if kind not in SENSITIVITIES:
        raise unknown("sensitivity", kind, SENSITIVITIES)
    if kind == "released":
        return float(latents.double().norm()), None
    clip = float((latents.double() - mean.double()).norm(dim=-1).max())
    return 2 * clip, clip


def make_dp_noise(
    latents: torch.Tensor, success: float, prior: float, kind: str = "replace", orders: Iterable[float] = MANY_ORDERS
) -> Noise:
    """Make noise whose observer is right at most with probability ``success``.

    latents: a sample, (samples, d). kind: see ``sensitivity``. orders: see ``renyi_variance``.
    The budget of the noise is the information for which ``noise`` promises the same success.
    """
    points = latents.detach().double()
    mean = points.mean(0)
    bound, clip = sensitivity(points, mean, kind)
    variance = renyi_variance(bound, success, prior, orders)
    size = points.shape[1]
    return Noise(
        torch.eye(size, dtype=torch.float64), torch.full((size,), variance, dtype=torch.float64), mean,
        (points - mean).T @ (points - mean) / len(points), success_information(success, prior), f"dp-{kind}", clip,
    )  # fmt: skip
