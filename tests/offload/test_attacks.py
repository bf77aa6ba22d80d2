"""Attacks are right without noise, stay within the bound with it, and find noise that is too small."""

from math import log

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.numerics.information import posterior_success
from jettison.offload.attacks import averaged, bench, likeliest, nearest, success_of
from jettison.offload.noise import make_noise

CLASSES, SIZE = 12, 6


def population(count, seed, spread=0.15):
    """Latents of twelve secrets: a centre for each, and frames around it."""
    centres = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(9))
    centres = centres * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.3])
    labels = torch.arange(count) % CLASSES
    rng = torch.Generator().manual_seed(seed)
    return centres[labels] + spread * torch.randn(count, SIZE, generator=rng), labels


KNOWN, OTHER = population(240, 1), population(240, 2)
COVARIANCE = torch.cov(torch.cat([KNOWN[0], OTHER[0]]).T, correction=0)
DECODE = lambda latents: torch.tanh(latents @ torch.randn(SIZE, 50, generator=torch.Generator().manual_seed(4)))


def attacked(noise, **options):
    return bench(*OTHER, *KNOWN, noise, **{"decode": DECODE, "tries": 600, "steps": 200} | options)


def test_the_interval():
    one = success_of(torch.tensor([True] * 30 + [False] * 70))
    assert (one.rate, one.tries) == (0.3, 100)
    assert (one.low, one.high) == pytest.approx((0.2124, 0.3998), abs=1e-4)  # tables of Clopper and Pearson
    assert success_of(torch.ones(5, dtype=bool)).high == 1
    with pytest.raises(UsageError, match="without tries"):
        success_of(torch.zeros(0, dtype=bool))


def test_without_noise_every_attack_is_right():
    results = attacked(None)
    assert [result.attack for result in results] == ["nearest", "network", "reconstruction"]
    assert all(result.success.rate > 0.9 and result.bound == 1 for result in results)


@pytest.mark.parametrize("rule", ["exact", "linear"])
@pytest.mark.parametrize("budget", [0.02, 0.3, 1.0])
def test_with_noise_none_passes_the_bound(rule, budget):
    results = attacked(make_noise(COVARIANCE, budget, rule))
    assert [result.attack for result in results] == ["nearest", "likeliest", "network", "reconstruction"]
    for result in results:
        assert result.bound == posterior_success(budget, 1 / CLASSES)
        assert result.over <= 0, result
    best = max(result.success.rate for result in results)
    assert budget < 0.1 or best > 1 / CLASSES + 0.05, "the attacks see something where they can"


def test_averaging_stays_within_the_budget_of_its_draws():
    noise = make_noise(COVARIANCE, 0.1)
    one, many = attacked(noise, repeats=(1, 20), attacks=["likeliest"])
    assert many.bound == posterior_success(2.0, 1 / CLASSES) and one.bound < many.bound
    assert one.over <= 0 and many.over <= 0
    assert many.success.low > one.bound, "twenty draws tell more than one may: they have to be counted"


def test_noise_for_a_covariance_that_was_too_small_is_found():
    """The latents have grown by 4 since the estimate: the attack passes the bound."""
    results = attacked(make_noise(COVARIANCE / 16, 0.3), attacks=["likeliest"])
    assert results[0].over > 0.1


def test_the_likeliest_is_at_least_as_good_as_the_nearest():
    noise = make_noise(COVARIANCE, 2.0)
    seen = noise.add(OTHER[0].repeat(10, 1), torch.Generator().manual_seed(5))
    arguments = seen, OTHER[1].repeat(10), *KNOWN
    assert likeliest(*arguments, noise).rate >= nearest(*arguments, noise).rate >= nearest(*arguments).rate - 0.02


@pytest.mark.parametrize("rule", ["exact", "waterfilling"])
def test_the_network_sees_about_as_much_as_the_likeliest(rule):
    """Also where some directions have a million times more noise than others."""
    network, best = attacked(make_noise(COVARIANCE, 1.5, rule), attacks=["network", "likeliest"], steps=300)
    assert network.success.rate > best.success.rate - 0.08 and best.over <= 0


def test_averages_have_less_noise():
    noise = make_noise(torch.eye(3), 0.5)
    drawn = averaged(noise, 16, torch.zeros(4000, 3), torch.Generator().manual_seed(1))
    assert float(drawn.var()) == pytest.approx(noise.trace / 3 / 16, rel=0.1)


def test_the_same_seed_gives_the_same_result():
    noise = make_noise(COVARIANCE, 1.0)
    assert attacked(noise, seed=3) == attacked(noise, seed=3) != attacked(noise, seed=4)
    assert attacked(noise, attacks=["nearest"])[0].to_dict().keys() >= {"attack", "repeats", "bound", "rate", "low"}


def test_what_is_refused():
    with pytest.raises(UsageError, match="did you mean 'nearest'"):
        attacked(None, attacks=["nearst"])
    with pytest.raises(UsageError, match="labels 0 to 11"):
        bench(OTHER[0][:5], OTHER[1][:5], *KNOWN, None)
    assert log(CLASSES) > 2
