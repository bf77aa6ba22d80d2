"""The covariance that is estimated online, and when the bound holds with it."""

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.offload.covariance import RunningCovariance, shortfall
from jettison.offload.noise import make_noise

RNG = lambda seed: torch.Generator().manual_seed(seed)
PLAIN = {"shrinkage": 0.0, "floor": 1e-9, "margin": 1.0}


def latents(count, scale, seed):
    return torch.randn(count, len(scale), generator=RNG(seed), dtype=torch.float64) * torch.tensor(scale) + 3.0


def test_batches_do_not_matter():
    points = latents(50, [1.0, 2.0, 0.5], 1)
    whole, single = RunningCovariance(3, 20, **PLAIN), RunningCovariance(3, 20, **PLAIN)
    whole.update(points)
    for point in points:
        single.update(point[None])
    torch.testing.assert_close(whole.estimate(), single.estimate())
    weights = 0.5 ** (torch.arange(49, -1, -1, dtype=torch.float64) / 20)
    torch.testing.assert_close(whole.mean, weights @ points / weights.sum())
    expected = torch.cov(points.T, correction=0, aweights=weights)
    torch.testing.assert_close(whole.estimate(), expected)


def test_it_follows_a_drift_by_its_half_life():
    running = RunningCovariance(2, 100, **PLAIN)
    running.update(latents(2000, [1.0, 1.0], 1))
    running.update(latents(1000, [3.0, 1.0], 2))
    assert float(running.estimate()[0, 0]) == pytest.approx(9, rel=0.35)


def test_shrinkage_floor_and_margin():
    points = latents(5, [1.0] * 20, 1)  # fewer latents than dimensions
    raw = RunningCovariance(20, 1e6, **PLAIN)
    raw.update(points)
    assert shortfall(torch.eye(20), raw.estimate()) > 100
    safe = RunningCovariance(20, 1e6, shrinkage=0.3, floor=0.1, margin=2.0)
    safe.update(points)
    values = torch.linalg.eigvalsh(safe.estimate())
    average = float(torch.cov(points.T, correction=0).diagonal().mean())
    assert float(values.min()) == pytest.approx(2 * 0.3 * average, rel=0.05)


def test_the_bound_holds_while_the_estimate_is_large_enough():
    """And it is broken when it is too small: latents grow, and the noise stays what it was."""
    running = RunningCovariance(4, 500)
    running.update(latents(4000, [1.0, 0.5, 0.2, 2.0], 1))
    noise = make_noise(running.estimate(), 1.0)
    same = torch.cov(latents(4000, [1.0, 0.5, 0.2, 2.0], 2).T)
    assert shortfall(same, noise.latents) < 1.1 and noise.information(same) < 1.0

    grown = torch.cov(latents(4000, [2.0, 1.0, 0.4, 4.0], 3).T)
    assert shortfall(grown, noise.latents) == pytest.approx(4 / 1.1, rel=0.15)
    assert noise.information(grown) > 1.5, "the violation"
    assert make_noise(noise.latents * shortfall(grown, noise.latents), 1.0).information(grown) <= 1.0 + 1e-9

    running.update(latents(4000, [2.0, 1.0, 0.4, 4.0], 4))
    assert make_noise(running.estimate(), 1.0).information(grown) <= 1.0, "the estimate has followed"


def test_what_is_refused():
    running = RunningCovariance(3)
    with pytest.raises(UsageError, match="at least 2"):
        running.estimate()
    for wrong in (torch.zeros(2, 4), torch.zeros(3), torch.full((1, 3), float("inf"))):
        with pytest.raises(UsageError, match="are needed"):
            running.update(wrong)
    running.update(torch.zeros(0, 3))
    running.update(torch.ones(5, 3))
    with pytest.raises(UsageError, match="all latents are equal"):
        running.estimate()
    with pytest.raises(UsageError, match="half_life = 0"):
        RunningCovariance(3, 0)
