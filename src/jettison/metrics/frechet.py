"""The Fréchet distance between two sets of features, as of generated and real images, with bootstrap intervals.

- Each set is taken as a normal distribution: d² = |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½), in float64, by
  eigenvalues of symmetric matrices (arXiv:1706.08500, without the square root of a product that is not symmetric).
- The estimate from a finite set is too large, by a term in features / samples. Compare only equal numbers of samples,
  and keep the features few: ``fit_projection`` projects on the first principal components of real images.
- A resampled set has repeated rows, so the estimate from it is too large once more. Intervals are therefore shifted:
  the mean of the resampled distances is moved to the distance itself.
- Few features of a small classifier are no Inception features: distances compare models under one set of features and
  one reference, and mean nothing beside distances of other papers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES, LEVEL = 1000, 0.95
DIMENSIONS = 64


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Projection:
    """A map of features on principal components. mean: (features,). axes: (features, components), orthonormal."""

    mean: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return (samples, components) float64. features: (samples, features)."""
        return (features.double() - self.mean) @ self.axes


def fit_projection(features: Tensor, components: int = DIMENSIONS) -> Projection:
    """Return the projection on the first principal components.

    features: (samples, features), of real images that are not the reference of a distance.
    components: at most this many; all if there are fewer features.
    Components are not scaled to equal variance, so those that vary more weigh more, as in the plain distance.
    """
    mean, covariance = moments(features)
    axes = torch.linalg.eigh(covariance)[1].flip(-1)[:, :components]  # eigh sorts from the smallest on
    return Projection(mean, axes)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (features,) and covariance (features, features), float64. features: (samples, features).

    Raises ValueError for fewer than 2 samples, or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; (samples, features) with 2 samples is needed")
    features = features.double()
    if not features.isfinite().all():
        raise ValueError("features are not finite")
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet(features: Tensor, reference: Tensor) -> float:
    """Return the squared Fréchet distance (what is called FID) of two sets. Both: (samples, features)."""
    return _distance(moments(features), moments(reference))


def frechet_interval(
    features: Tensor, reference: Tensor, *, paired: bool = False, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the distance and its 95% interval under resampling of ``features``.

    features, reference: (samples, features).
    paired: rows of the two belong together (equal seeds): the reference is resampled with the same rows. Otherwise the
        reference stays as it is, so the interval is for this reference.
    """
    _check_paired(features, reference, paired)
    value, fixed = frechet(features, reference), None if paired else moments(reference)

    def distance(rows: Tensor) -> float:
        return _distance(moments(features[rows]), fixed or moments(reference[rows]))

    return _interval(value, distance, len(features), resamples, seed)


def frechet_difference(
    features: Tensor, other: Tensor, reference: Tensor, *, paired: bool = False, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Return the distance of ``features`` minus that of ``other``, with its 95% interval; negative: ``features`` win.

    features, other: (samples, features), made from the same seeds: both are resampled with the same rows.
    reference: (samples, features). paired: see ``frechet_interval``.
    """
    _check_paired(features, other, True)
    _check_paired(features, reference, paired)
    fixed = None if paired else moments(reference)

    def difference(rows: Tensor) -> float:
        target = fixed or moments(reference[rows])
        return _distance(moments(features[rows]), target) - _distance(moments(other[rows]), target)

    return _interval(difference(torch.arange(len(features))), difference, len(features), resamples, seed)


def _interval(value: float, measure, count: int, resamples: int, seed: int) -> Interval:
    rng = torch.Generator().manual_seed(seed)
    values = [measure(torch.randint(count, (count,), generator=rng)) for _ in range(resamples)]
    distances = torch.tensor(values, dtype=torch.float64)
    edge = (1 - LEVEL) / 2
    low, high = (distances - distances.mean()).quantile(torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return Interval(value, value + low, value + high)


def _check_paired(features: Tensor, other: Tensor, paired: bool) -> None:
    if paired and len(features) != len(other):
        raise ValueError(f"{len(features)} and {len(other)} samples; paired sets have equally many")


def _distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    (mean, covariance), (other_mean, other_covariance) = first, second
    root = _root(covariance)
    inner = root @ other_covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()  # rounding makes some negative
    squared = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, float(squared))


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
