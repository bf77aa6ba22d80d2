"""The Fréchet distance: against the closed form of normal distributions, and what its intervals cover."""

import pytest
import torch

from jettison.metrics.frechet import (
    fit_projection,
    frechet,
    frechet_difference,
    frechet_interval,
    moments,
)


def normal(count, width, seed, scale=None, mean=0.0):
    """Samples whose mean and covariance are exactly those asked for: diagonal of ``scale`` squared."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=rng, dtype=torch.float64)
    features -= features.mean(0)
    covariance = features.T @ features / (count - 1)
    features = features @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    return features * (torch.ones(width) if scale is None else scale) + mean


class TestClosedForm:
    def test_equal_sets(self):
        features = torch.randn(200, 16)
        assert frechet(features, features) == pytest.approx(0, abs=1e-9)

    def test_diagonal_covariances(self):
        a, b = torch.linspace(0.5, 2, 8).double(), torch.linspace(3, 0.1, 8).double()
        expected = 8 * 0.7**2 + float((a - b).square().sum())  # |mean|² + Σ (σ₁ - σ₂)²
        assert frechet(normal(300, 8, 0, a), normal(200, 8, 1, b, mean=0.7)) == pytest.approx(expected, rel=1e-9)

    def test_covariances_that_do_not_commute(self):
        linalg = pytest.importorskip("scipy.linalg")
        rng = torch.Generator().manual_seed(2)
        first, second = (torch.randn(400, 6, generator=rng) @ torch.randn(6, 6, generator=rng) for _ in range(2))
        (m1, c1), (m2, c2) = moments(first), moments(second)
        root = linalg.sqrtm((c1 @ c2).numpy()).real.trace()
        expected = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * root
        assert frechet(first, second) == pytest.approx(expected, rel=1e-6)
        assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-9)

    def test_fewer_samples_than_features(self):
        first, second = torch.randn(5, 20), torch.randn(7, 20)
        assert frechet(first, second) > 0 and frechet(first, first) == pytest.approx(0, abs=1e-6)


class TestIntervals:
    def test_an_interval_holds_its_value_and_narrows_with_samples(self):
        reference = torch.randn(2000, 4)
        wide, narrow = (frechet_interval(torch.randn(n, 4) + 0.5, reference, resamples=100) for n in (100, 1600))
        for found in (wide, narrow):
            assert found.low < found.value < found.high
        assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)

    def test_a_shift_is_found_as_a_difference_and_noise_is_not(self):
        rng = torch.Generator().manual_seed(3)
        reference, base = (torch.randn(1000, 8, generator=rng) for _ in range(2))
        worse = base + 0.4
        found = frechet_difference(base, worse, reference, resamples=100)
        assert found.value < 0 and found.high < 0
        same = frechet_difference(base, base + 1e-3 * torch.randn(1000, 8, generator=rng), reference, resamples=100)
        assert same.low < 0 < same.high or abs(same.value) < 1e-3

    def test_paired_rows_are_resampled_together(self):
        features = torch.randn(50, 4)
        found = frechet_interval(features, features, paired=True, resamples=50)
        assert found.high == pytest.approx(0, abs=1e-9)

    def test_the_same_seed_gives_the_same_interval(self):
        a, b = torch.randn(60, 3), torch.randn(60, 3)
        assert frechet_interval(a, b, resamples=20, seed=5) == frechet_interval(a, b, resamples=20, seed=5)


class TestProjection:
    def test_all_components_keep_the_distance(self):
        a, b = torch.randn(100, 6), torch.randn(100, 6) * 2
        project = fit_projection(torch.randn(200, 6), 6)
        assert frechet(project(a), project(b)) == pytest.approx(frechet(a, b), rel=1e-9)

    def test_the_first_components_vary_most(self):
        scale = torch.tensor([0.1, 5.0, 1.0, 0.2])
        projected = fit_projection(normal(100, 4, 0, scale), 2)(normal(50, 4, 1, scale))
        assert projected.shape == (50, 2)
        assert projected.var(0).tolist() == pytest.approx([25.0, 1.0])


@pytest.mark.parametrize("bad", [torch.randn(1, 3), torch.randn(3), torch.full((4, 2), float("nan"))])
def test_bad_features(bad):
    with pytest.raises(ValueError, match="features"):
        moments(bad)


def test_unequal_pairs():
    with pytest.raises(ValueError, match="paired"):
        frechet_interval(torch.randn(5, 2), torch.randn(6, 2), paired=True)
