"""The account of a secret: what is fresh, reused or local, when the limit is reached, and what its words say."""

from math import comb, inf, log

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.numerics.information import gaussian_information, posterior_success
from jettison.offload.accounting import Account, Terms, describe, noise_for
from jettison.offload.noise import make_noise
from jettison.offload.timing import draw_patterns, measure_timing

SEEDED = lambda: torch.Generator().manual_seed(1)


def account(**terms):
    terms = Terms(**{"limit": 1.0, "draws": 3, "secrets": 10} | terms)
    return Account(terms, noise_for(terms, torch.eye(4)), SEEDED())


def kinds(account, latents):
    return [account.frame(latent).kind for latent in latents]


def still(count):
    return torch.zeros(count, 4)


def test_the_limit_is_shared_by_the_draws():
    own = account()
    assert own.noise.budget == pytest.approx(1 / 3) == own.terms.budget
    assert kinds(own, torch.randn(6, 4)) == ["fresh"] * 3 + ["local"] * 3
    assert own.spent == pytest.approx(1.0) and own.frame(still(1)[0]).noised is None
    own.begin_secret()
    assert own.spent == 0 and own.frame(still(1)[0]).kind == "fresh"


def test_what_is_sent_has_the_noise():
    """Draws for one latent: their mean is the shrunk latent, their covariance that of the shrunk noise."""
    own, latent = account(limit=4000.0, draws=4000), torch.tensor([2.0, 0.0, 0.0, -1.0])
    sent = torch.stack([torch.tensor(own.frame(latent).noised.latent) for _ in range(4000)])
    variance = float(own.noise.variances[0])  # latents of variance 1: the gain is 1 / (1 + variance)
    torch.testing.assert_close(sent.mean(0), latent / (1 + variance), atol=0.05, rtol=0)
    expected = torch.eye(4) * variance / (1 + variance) ** 2
    torch.testing.assert_close(torch.cov(sent.T), expected, atol=0.02, rtol=0)


def test_a_noised_latent_is_reused_unchanged_until_the_true_one_moves():
    own = account(delta=0.5, draws=2)  # the spread of four directions of variance 1 is 2: a move of 1
    path = [0.0, 0.9, -0.9, 1.1, 1.9, 2.2, 1.1]
    sent = [own.frame(torch.tensor([x, 0, 0, 0])) for x in path]
    assert [one.kind for one in sent] == ["fresh", "reused", "reused", "fresh", "reused", "local", "local"]
    latents = [one.noised.latent.tolist() for one in sent[:5]]
    assert latents[0] == latents[1] == latents[2] != latents[3] == latents[4]
    assert [one.noised.frame for one in sent[:5]] == [0, 1, 2, 3, 4], "they can be sent again"
    assert [one.draws for one in sent] == [1, 1, 1, 2, 2, 2, 2]


def test_without_delta_the_times_do_not_depend_on_the_latents():
    for latents in (still(9), torch.randn(9, 4), 1e3 * torch.randn(9, 4)):
        own = account(every=2)
        assert kinds(own, latents) == ["fresh", "reused"] * 3 + ["local"] * 3
    assert Terms(1.0, 3).timing_bound == 0
    own = account(every=2, frames=3)
    assert kinds(own, still(5)) == ["fresh", "reused", "fresh", "local", "local"]


def test_the_bound_of_the_pattern_is_the_logarithm_of_the_number_of_patterns():
    bound = lambda **terms: Terms(**{"limit": 1.0, "draws": 2, "delta": 0.1} | terms).timing_bound
    assert bound() == inf
    assert bound(frames=1) == 0
    assert bound(frames=11) == pytest.approx(log(1 + 10 + comb(10, 2)))
    assert bound(frames=21, every=2) == pytest.approx(log(1 + 10 + comb(10, 2)))
    assert bound(frames=11, draws=30) == pytest.approx(10 * log(2))
    patterns = set()
    for seed in range(1500):  # all patterns of random walks: as many as the bound counts
        own = account(delta=0.5, draws=2, frames=5)
        walk = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).cumsum(0) * 0.7
        patterns.add(tuple(kinds(own, walk)))
    assert len(patterns) == 1 + 4 + comb(4, 2)


def test_the_bound_of_very_many_patterns_takes_no_time(monkeypatch):
    bound = lambda draws, frames: Terms(1.0, draws, delta=0.1, frames=frames).timing_bound
    exact = [bound(draws, 2001) for draws in (50, 900, 1100)]
    monkeypatch.setattr("jettison.offload.accounting.COUNTED", 10)
    for counted, draws in zip(exact, (50, 900, 1100), strict=True):
        assert counted <= bound(draws, 2001) <= 1.03 * counted
    assert bound(10**9, 10**12) == pytest.approx(1e12 * 0.0079, rel=0.02)


def test_the_pattern_can_count_against_the_limit():
    terms = Terms(10.0, 2, delta=0.1, frames=11, count_timing=True)
    assert terms.budget == pytest.approx((10 - log(1 + 10 + 45)) / 2)
    with pytest.raises(UsageError, match=r"may tell 4.03 nats alone.*delta = 0"):
        Terms(1.0, 2, delta=0.1, frames=11, count_timing=True)
    with pytest.raises(UsageError, match="alone"):
        Terms(100.0, 2, delta=0.1, count_timing=True)


def test_draws_add_up_at_most():
    """The joint information of N draws, for latents that depend on each other in any way, is within the limit."""
    terms = Terms(2.0, 5)
    mix = torch.randn(3, 3, generator=SEEDED(), dtype=torch.float64)
    single = mix @ mix.T
    noise = noise_for(terms, single)
    apart = torch.kron(torch.eye(5, dtype=torch.float64), noise.covariance)
    for likeness in (0.0, 0.5, 0.99, 1.0):  # correlation between two frames
        between = torch.full((5, 5), likeness, dtype=torch.float64).fill_diagonal_(1.0)
        told = gaussian_information(torch.kron(between, single), apart)
        assert told <= terms.limit + 1e-9
        assert likeness or told == pytest.approx(terms.limit)


def test_the_budget_holds_only_if_the_covariance_is_not_too_small():
    own = account()
    assert own.overspent(torch.eye(4)) == pytest.approx(0, abs=1e-9)
    assert own.overspent(0.5 * torch.eye(4)) < 0 < own.overspent(2 * torch.eye(4))
    with pytest.raises(UsageError, match=r"budget of 0.5 nats: these terms allow 0.333"):
        own.begin_secret(make_noise(torch.eye(4), 0.5))
    own.begin_secret(make_noise(2 * torch.eye(4), 1 / 3))
    assert own.overspent(2 * torch.eye(4)) == pytest.approx(0, abs=1e-9)


def test_latents_after_a_move_need_noise_of_their_own():
    """Most frames rest at the mean; with delta, those that are sent are mostly the others."""
    rng = SEEDED()
    frames = torch.where(torch.rand(4000, 1, generator=rng) < 0.05, 3 * torch.randn(4000, 4, generator=rng), 0.0)
    for delta, kept in ((0.0, True), (0.5, False)):
        terms = Terms(4000.0, 4000, 10, delta=delta)
        own = Account(terms, noise_for(terms, torch.cov(frames.T)), SEEDED())
        kinds(own, frames)
        assert (own.overspent() < 0.02) is kept, (delta, own.overspent())
    again = Account(terms, noise_for(terms, 1.05 * torch.cov(frames.T) + own._watched.estimate()), SEEDED())
    kinds(again, frames)
    assert again.overspent() <= 0


def test_a_latent_that_is_not_finite_never_leaves():
    for broken in (float("nan"), float("inf")):
        own = account(delta=0.5)
        with pytest.raises(UsageError, match="not finite"):
            own.frame(torch.full((4,), broken))
        assert own.draws == 0


def test_the_words():
    terms = Terms(1.0, 30, 40, delta=0.1, frames=60)
    text = describe(terms, noise_for(terms, torch.eye(4)), measured_timing=0.25)
    for part in (
        "sees what is sent, but not when, while one of 40 secrets lasts", "right at most 45.4 %",
        "2.5 % without", "1 nats per secret, for 30 draws",
        "0.0333 nats each", "less than 0.1 of the latents' spread", "at least 0.25 were measured",
        "does not include", "times the variance of the latents", "rule exact",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert posterior_success(1.0, 1 / 40) == pytest.approx(0.454, abs=5e-4) == terms.success
    assert terms.after(15) == posterior_success(0.5, 1 / 40) and terms.after(99) == terms.success
    assert "none of the figures" not in text
    assert "sees everything that is sent" in describe(Terms(1.0, 30))
    assert "times of the draws" not in describe(Terms(1.0, 30)) and "one draw" in describe(Terms(1.0))
    assert "without bound" in describe(Terms(1.0, 2, delta=1))
    broken = make_noise(torch.diag(torch.tensor([1.0, 16.0])), 0.1, "released")
    assert broken.information() > 0.2 and "none of the figures above are promised" in describe(Terms(0.1), broken)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": inf},
        {"draws": 0},
        {"draws": 1.5},
        {"secrets": 1},
        {"delta": -1},
        {"every": 0},
        {"frames": 0},
    ],
    ids=str,
)
def test_what_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Terms(**{"limit": 1.0} | wrong)


def walks(speeds, count, frames):
    """Sequences of latents: a secret moves at its own speed."""
    rng, sequences, secrets = SEEDED(), [], []
    for secret, speed in enumerate(speeds):
        for _ in range(count):
            sequences.append((torch.randn(frames, 4, generator=rng) * speed).cumsum(0))
            secrets.append(secret)
    return sequences, torch.tensor(secrets)


def test_what_the_times_tell_is_measured():
    terms = Terms(4.0, 20, secrets=4, delta=0.5, frames=40)
    noise = noise_for(terms, torch.eye(4))
    told = measure_timing(terms, noise, *walks([0.02, 0.1, 0.25, 0.6], 60, 40))
    assert told.success.rate > 0.8 and 0.5 < told.least < log(4) <= told.most
    nothing = measure_timing(terms, noise, *walks([0.2] * 4, 60, 40))
    assert nothing.least == 0 and nothing.success.low < 0.25 < nothing.success.high
    clock = Terms(4.0, 20, secrets=4, every=2, frames=40)
    same = measure_timing(clock, noise_for(clock, torch.eye(4)), *walks([0.02, 0.1, 0.25, 0.6], 60, 40))
    assert same.least == 0 == same.most
    patterns = draw_patterns(clock, noise_for(clock, torch.eye(4)), walks([0.1, 5.0], 2, 40)[0])
    assert len(patterns.unique(dim=0)) == 1
