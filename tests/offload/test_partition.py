"""Which components leave: by energy, by a measured loss, by a search; and how width is divided."""

from itertools import combinations

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.numerics.block_dct import block_dct
from jettison.offload.noise import exact
from jettison.offload.partition import (
    RELEASED,
    LinearLoss,
    Partition,
    by_energy,
    by_loss,
    by_order,
    by_search,
    component_energy,
    widths,
)


@pytest.fixture(scope="module")
def components():
    frames = SyntheticAvatars(texture=16, grid=(4, 4), expressions=12).sample(torch.arange(60) % 12, 1)
    return block_dct(frames.average, 4)


def test_the_least_energy_leaves(components):
    energy = component_energy(components)
    expected = components.var(0, unbiased=False).sum((1, 2, 3))
    torch.testing.assert_close(energy.float(), expected)
    chosen = by_energy(energy, 10)
    assert max(energy[list(chosen.offloaded)]) <= min(energy[list(chosen.local)])
    assert 0 in chosen.local and len(chosen.local) == 6


def test_the_released_order():
    assert by_order(RELEASED, 14).local == (0, 1)
    assert by_order(RELEASED, 2).offloaded == (14, 15)
    assert sorted(RELEASED) == list(range(16))


def test_a_loss_that_is_measured_decides():
    cost = {component: abs(component - 5) for component in range(9)}
    assert by_loss(9, 3, lambda members: sum(cost[member] for member in members)).offloaded == (4, 5, 6)


def test_the_search_sees_components_together():
    """One by one, 0 and 1 are best; together they are the worst."""

    def loss(members):
        return sum(members) + 100 * ({0, 1} <= set(members))

    assert by_loss(6, 2, loss).offloaded == (0, 1)
    assert by_search(6, 2, loss).offloaded == (0, 2)
    large = by_search(20, 7, lambda members: sum(members), seed=3)  # too many sets to try all
    assert len(large.offloaded) == 7 and sum(large.offloaded) < 40
    assert by_search(20, 7, lambda members: sum(members), seed=3) == large


def test_the_linear_proxy(components):
    """It is what principal components and the best linear guess would reach, and falls with budget and latents."""
    loss = LinearLoss(components, 8, 4, 1.0)
    away = (5, 6, 9, 10)
    values = (components - components.mean(0)).double()
    stays = [place for place in range(16) if place not in away]
    expected = 0.0
    for members, latents in ((stays, 8), (list(away), 4)):
        singular = torch.linalg.svdvals(values[:, members].flatten(1)) ** 2 / len(values)
        expected += float(singular[latents:].sum())
        kept = singular[:latents]
    noise = exact(kept, 1.0)
    expected += float((kept - kept**2 / (kept + noise)).sum())
    total = float(values.square().sum() / len(values))
    assert loss(away) == pytest.approx(expected / total, rel=1e-8)
    assert LinearLoss(components, 8, 4, 10.0)(away) < loss(away) < LinearLoss(components, 8, 4, 0.01)(away)
    assert LinearLoss(components, 20, 4, 1.0)(away) < loss(away)
    best = by_search(16, 14, loss)
    assert loss(best.offloaded) == pytest.approx(min(loss(members) for members in combinations(range(16), 14)))


def test_width_goes_by_scores():
    partition = Partition(4, (2, 3))
    assert widths([6, 6, 2, 2], partition, 16) == (12, 4)
    assert widths([1, 0, 0, 0], partition, 16) == (15, 1)
    assert widths([0, 0, 1, 1], partition, 16) == (1, 15)
    assert widths(torch.ones(4), partition, 3) in ((1, 2), (2, 1))


def test_what_is_refused():
    for wrong in ((), (0, 1, 2, 3), (4,), (1, 1)):
        with pytest.raises(UsageError, match="components offloaded|are needed"):
            Partition(4, wrong)
    for function in (lambda: by_order(RELEASED, 16), lambda: by_search(4, 0, sum), lambda: by_order(RELEASED, 1.5)):
        with pytest.raises(UsageError, match="offloaded = "):
            function()
