"""The noise of every rule against the reference vectors, what it keeps in samples, and the baseline."""

import pytest
import torch
from privatar_vectors import cases, tensors

from jettison.core.errors import UsageError
from jettison.numerics.information import gaussian_information, linear_bound, success_information
from jettison.offload.local_dp import MANY_ORDERS, make_dp_noise, renyi_variance, sensitivity
from jettison.offload.noise import RULES, make_noise

NOISE = cases()["noise_cases"]
each_case = pytest.mark.parametrize("case", NOISE, ids=lambda case: f"{case['dim']}-{case['v']}")


def covariance(case) -> torch.Tensor:
    return tensors()[f"nz{case['index']}_Sigma"]


def close(actual: torch.Tensor, expected: list[float]):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)


@each_case
def test_the_linear_rule(case):
    noise = make_noise(covariance(case), case["v"], "linear")
    close(noise.variances, case["sigma2_linear_bound_rule"])
    assert noise.trace == pytest.approx(case["closed_form_trace_S2_over_2v"], rel=1e-8)
    expected = tensors()[f"nz{case['index']}_v{case['v']}_noise_cov"]
    torch.testing.assert_close(noise.covariance, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert linear_bound(covariance(case), noise.covariance) == pytest.approx(case["v"], rel=1e-8)
    assert noise.information() == pytest.approx(case["mi_exact_gaussian_of_rule"], rel=1e-8)


@each_case
def test_the_exact_rule_needs_less_for_the_same_information(case):
    noise = make_noise(covariance(case), case["v"])
    close(noise.variances, case["sigma2_exact_constraint_optimum"])
    assert noise.trace == pytest.approx(case["trace_exact_constraint_optimum"], rel=1e-8)
    assert noise.information() == pytest.approx(case["v"], rel=1e-8)
    white = make_noise(covariance(case), case["v"], "isotropic")
    close(white.variances[:1], [case["isotropic_variance_exact"]])
    assert noise.trace < min(white.trace, make_noise(covariance(case), case["v"], "linear").trace)


@each_case
def test_the_released_rule_is_named_and_breaks_its_budget_in_places(case):
    noise = make_noise(covariance(case), case["v"], "released")
    close(noise.variances.flip(0), case["sigma2_privatar_released_code"])
    expected = case["mi_released_code_noise_in_coordinate_basis_descending_eigs"]
    assert noise.information(covariance(case)) == pytest.approx(expected, rel=1e-8)


def test_the_released_rule_exceeds_a_budget():
    assert any(make_noise(covariance(case), case["v"], "released").information() > 1.02 * case["v"] for case in NOISE)


def test_no_other_noise_with_the_same_budget_is_smaller():
    """Noise along the eigenvectors with other sizes, scaled to the same information, has a larger trace."""
    rng = torch.Generator().manual_seed(3)
    best = make_noise(covariance(NOISE[5]), 2.0)
    for _ in range(30):
        other = best.variances * (1 + 0.3 * torch.randn(8, generator=rng, dtype=torch.float64)).clamp(min=0.05)
        low, high = 0.01, 100.0
        for _ in range(60):
            middle = (low * high) ** 0.5
            information = gaussian_information(best.latents, best.basis * (other * middle) @ best.basis.T)
            low, high = (middle, high) if information > 2.0 else (low, middle)
        assert float(other.sum()) * high >= best.trace * (1 - 1e-9)


@each_case
def test_waterfilling_has_the_least_error(case):
    budget, true = case["v"], covariance(case)
    error = lambda noise: float((true @ torch.linalg.solve(true + noise.covariance, noise.covariance)).diagonal().sum())
    noise = make_noise(true, budget, "waterfilling")
    assert noise.information() == pytest.approx(budget, rel=1e-6)
    for other in ("exact", "linear", "isotropic"):
        assert error(noise) < error(make_noise(true, budget, other)) * (1 + 1e-6)
    size, generous = len(true), make_noise(true, 60.0, "waterfilling")
    level = float(torch.linalg.det(true)) ** (1 / size) * 2.718281828459045 ** (-120.0 / size)
    if level < float(torch.linalg.eigvalsh(true)[0]):  # all directions are sent: each has the same error
        assert error(generous) == pytest.approx(size * level, rel=1e-6)


@pytest.mark.parametrize("seeded", [True, False])
def test_what_is_added_has_the_covariance(seeded):
    noise = make_noise(covariance(NOISE[5]), 1.0)
    generator = torch.Generator().manual_seed(5) if seeded else None
    latents = torch.full((40_000, 8), 2.5)
    drawn = noise.add(latents, generator).double() - 2.5
    assert drawn.shape == latents.shape and noise.add(latents[:3]).dtype == torch.float32
    error = torch.cov(drawn.T) - noise.covariance
    assert error.norm() < 0.05 * noise.covariance.norm()
    assert drawn.mean(0).norm() < 5 * (noise.trace / 40_000) ** 0.5
    assert (noise.add(latents[:1]) != noise.add(latents[:1])).all(), "a new draw every time"


def test_a_seed_repeats_the_noise():
    noise = make_noise(torch.eye(3), 1.0)
    draw = lambda seed: noise.draw(4, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_shrinking_is_the_best_linear_guess():
    rng = torch.Generator().manual_seed(7)
    true = covariance(NOISE[5])
    mean = torch.arange(8.0)
    noise = make_noise(true, 0.5, mean=mean)
    latents = mean + torch.randn(20_000, 8, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(true).T
    noised = noise.add(latents, rng)
    error = lambda guess: float((guess - latents).square().sum(1).mean())
    expected = float((true @ torch.linalg.solve(true + noise.covariance, noise.covariance)).diagonal().sum())
    assert error(noise.shrink(noised)) == pytest.approx(expected, rel=0.03)
    assert error(noise.shrink(noised)) < 0.5 * error(noised)


def test_a_direction_without_variance_gets_noise():
    noise = make_noise(torch.diag(torch.tensor([1.0, 0.0])), 1.0)
    assert (noise.variances > 0).all() and noise.spread == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("covariance", "budget", "rule", "message"),
    [
        (torch.eye(2), 0.0, "exact", "budget = 0.0"),
        (torch.eye(2), float("nan"), "exact", "budget = nan"),
        (torch.eye(2), 1.0, "exakt", "did you mean 'exact'"),
        (torch.zeros(2, 3), 1.0, "exact", "square matrix"),
        (torch.full((2, 2), float("nan")), 1.0, "exact", "finite"),
        (torch.zeros(2, 2), 1.0, "exact", "none may be negative"),
        (torch.diag(torch.tensor([1.0, -0.5])), 1.0, "exact", "none may be negative"),
    ],
)
def test_what_is_refused(covariance, budget, rule, message):
    with pytest.raises(UsageError, match=message):
        make_noise(covariance, budget, rule)


@pytest.mark.parametrize("rule", ["exact", "linear", "isotropic", "waterfilling"])
@pytest.mark.parametrize("budget", [1e-6, 1e-3, 30.0, 500.0])
def test_extreme_budgets(rule, budget):
    noise = make_noise(covariance(NOISE[10]), budget, rule)
    assert noise.information() <= budget * (1 + 1e-8) and rule in RULES


@pytest.mark.parametrize("case", cases()["dp_baseline_privatar_code"], ids=lambda case: str(case["c"]))
def test_the_formula_of_the_baseline(case):
    for success, expected in zip(case["gamma"], case["sigma_squared"], strict=True):
        assert renyi_variance(case["c"], success, case["kappa"]) == pytest.approx(expected, rel=1e-8)


def test_the_sensitivity_is_that_of_one_sample():
    latents = torch.randn(200, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean = latents.mean(0)
    bound, clip = sensitivity(latents, mean)
    assert bound == 2 * clip == pytest.approx(2 * float((latents - mean).norm(dim=1).max()))
    assert sensitivity(torch.cat([latents] * 4), mean)[0] == bound
    assert sensitivity(torch.cat([latents] * 4), mean, "released")[0] == pytest.approx(2 * float(latents.norm()))
    noise = make_dp_noise(latents, 0.4, 1 / 40)
    assert noise.variances.unique().tolist() == pytest.approx([renyi_variance(bound, 0.4, 1 / 40, MANY_ORDERS)])
    assert renyi_variance(bound, 0.4, 1 / 40, MANY_ORDERS) <= renyi_variance(bound, 0.4, 1 / 40)
    assert make_dp_noise(latents, 1.001 / 40, 1 / 40).trace > 1e3 * noise.trace, "close to the prior, orders are large"
    far = noise.add(mean[None] + 1e6, torch.Generator().manual_seed(0)) - noise.draw(
        1, torch.Generator().manual_seed(0)
    )
    assert float((far - mean).norm()) == pytest.approx(clip), "a latent outside the sample is clipped"
    assert noise.budget == pytest.approx(success_information(0.4, 1 / 40))
    assert make_noise(noise.latents, noise.budget).trace < noise.trace
    assert noise.information() < noise.budget, "the baseline promises more, and tells less on average"


def test_a_success_that_no_order_reaches_is_refused():
    with pytest.raises(UsageError, match="no order"):
        renyi_variance(1.0, 1 / 40, 1 / 40)
    with pytest.raises(UsageError, match="did you mean 'replace'"):
        sensitivity(torch.zeros(2, 2), torch.zeros(2), "replaced")
