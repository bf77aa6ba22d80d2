"""Gaussian information and posterior success against the reference vectors."""

from math import inf, log

import pytest
import torch
from privatar_vectors import cases, tensors

from jettison.core.errors import UsageError
from jettison.numerics.information import (
    gaussian_information,
    largest_ratio,
    linear_bound,
    posterior_success,
    success_information,
)


@pytest.mark.parametrize("case", cases()["mi_cases"], ids=lambda case: f"{case['kind']}-{case['dim']}")
def test_gaussian_information(case):
    covariance, noise = (tensors()[f"mi{case['index']}_{name}"] for name in ("Sigma", "N"))
    assert gaussian_information(covariance, noise) == pytest.approx(case["mi"], rel=1e-8)
    assert linear_bound(covariance, noise) == pytest.approx(case["linear_upper_bound"], rel=1e-8)
    assert gaussian_information(covariance, noise) <= linear_bound(covariance, noise)


@pytest.mark.parametrize("case", cases()["posterior_success"], ids=lambda case: f"{case['n']}-{case['v']}")
def test_posterior_success(case):
    success = posterior_success(case["v"], 1 / case["n"])
    assert success == pytest.approx(case["p"], abs=1e-8)
    if not case["saturated"]:
        assert success_information(success, 1 / case["n"]) == pytest.approx(case["v"], abs=1e-8)


def test_posterior_success_at_its_ends():
    assert posterior_success(0, 0.3) == 0.3
    assert posterior_success(log(40), 1 / 40) == posterior_success(inf, 1 / 40) == 1.0
    assert posterior_success(log(40) - 1e-9, 1 / 40) < 1
    values = [posterior_success(v, 1 / 40) for v in (0, 1e-6, 0.01, 0.1, 1, 3)]
    assert values == sorted(values) and len(set(values)) == 6
    assert success_information(1, 0.25) == pytest.approx(log(4)) and success_information(0, 0.5) == pytest.approx(
        log(2)
    )


def test_the_largest_ratio():
    one = torch.diag(torch.tensor([1.0, 4.0]))
    assert largest_ratio(one, torch.eye(2)) == pytest.approx(4)
    assert largest_ratio(one, torch.diag(torch.tensor([0.5, 8.0]))) == pytest.approx(2)


def test_what_is_refused():
    with pytest.raises(UsageError, match="positive definite"):
        gaussian_information(torch.eye(2), torch.zeros(2, 2))
    with pytest.raises(UsageError, match="information = -1"):
        posterior_success(-1, 0.1)
    for prior in (0, 1, 2, "a"):
        with pytest.raises(UsageError, match="between 0 and 1"):
            posterior_success(1, prior)
