"""The covariance of latents, estimated while they come: exponential average, shrinkage, and a floor of eigenvalues.

The noise of ``noise`` keeps its budget only while the estimate is nowhere smaller than the real covariance.
``RunningCovariance.estimate`` therefore takes a margin, and ``shortfall`` says how much was missing. The estimate is
made of true latents, so noise that follows it tells something about their average size; that is not counted, and is
little if the half-life is many secrets long.
"""

import torch

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.numerics.information import largest_ratio


class RunningCovariance:
    """Mean and covariance of latents with exponentially falling weights.

    size: d, of a latent.
    half_life: latents after which the weight of a latent has halved. A longer one averages better, a shorter one
        follows a drift.
    shrinkage: share of the estimate that is replaced by equal variances in all directions (Ledoit and Wolf); few
        latents make the smallest eigenvalues too small, and this corrects it.
    floor: eigenvalues are at least this share of their mean.
    margin: the estimate is multiplied by this. Above 1, the budget still holds if the covariance grows by so much
        before the next estimate.
    """

    def __init__(
        self, size: int, half_life: float = 1000.0, shrinkage: float = 0.05, floor: float = 1e-3, margin: float = 1.1
    ):
        check_number("size", size, 1, whole=True)
        check_number("half_life", half_life, 1)
        check_number("shrinkage", shrinkage, 0, 1)
        check_number("floor", floor, 1e-12, 1)
        check_number("margin", margin, 1)
        self.decay, self.shrinkage, self.floor, self.margin = 0.5 ** (1 / half_life), shrinkage, floor, margin
        self.weight = 0.0
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)  # weighted sum of squared deviations

    def update(self, latents: torch.Tensor) -> None:
        """Take in latents (batch, d) in the order of time. Raises UsageError for other sizes, infinity and NaN."""
        if latents.ndim != 2 or latents.shape[1] != len(self.mean) or not torch.isfinite(latents).all():
            raise UsageError(
                f"latents of shape {tuple(latents.shape)}: finite numbers (batch, {len(self.mean)}) are needed"
            )
        points, count = latents.detach().double(), len(latents)
        if not count:
            return
        weights = self.decay ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
        mine, before = float(weights.sum()), self.weight * self.decay**count
        mean = weights @ points / mine
        centred = points - mean
        step = mean - self.mean
        total = before + mine
        # Two groups with weights: their scatters add up, plus that of their means.
        self._scatter = (
            self._scatter * self.decay**count
            + (centred * weights[:, None]).T @ centred
            + torch.outer(step, step) * (before * mine / total)
        )
        self.mean = self.mean + step * (mine / total)
        self.weight, self.count = total, self.count + count

    def estimate(self) -> torch.Tensor:
        """Return the covariance, (d, d), with shrinkage, floor and margin. Raises UsageError before two latents."""
        if self.count < 2:
            raise UsageError(f"a covariance of {self.count} latents: at least 2 are needed")
        size = len(self.mean)
        plain = self._scatter / self.weight
        average = float(plain.diagonal().mean())
        if average <= 0:
            raise UsageError("all latents are equal: they have no covariance, and need no noise")
        shrunk = (1 - self.shrinkage) * plain + self.shrinkage * average * torch.eye(size, dtype=torch.float64)
        eigenvalues, basis = torch.linalg.eigh((shrunk + shrunk.T) / 2)
        kept = eigenvalues.clamp(min=self.floor * average) * self.margin
        return basis * kept @ basis.T


def shortfall(covariance: torch.Tensor, estimate: torch.Tensor) -> float:
    """Return by how much an estimate is too small in its worst direction; at most 1 means that the bound holds.

    covariance: the real one, (d, d). estimate: the one that noise was made for. Multiplied by the result, it suffices.
    """
    return largest_ratio(covariance, estimate)
