"""The search for clipped ranges."""

import pytest
import torch

from jettison.encodings.offset import OffsetGrid
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.numerics import ranges

GRIDS = [UniformGrid(2, -1), UniformGrid(4, -1, symmetric=False), ValueTable("nf4"), OffsetGrid(4)]


def one_after_the_other(groups, grid, importance):
    """Return scale and zero point of every group, (...): the first try with the least error, which is a number."""
    low, high = groups.amin(-1), groups.amax(-1)
    scale, zero = grid.scale_zero(low, high)
    least = torch.full_like(scale, torch.inf)
    for shrink in torch.linspace(1, ranges.NARROWEST, ranges.STEPS):
        tried, tried_zero = grid.scale_zero(low * shrink, high * shrink)
        for signed in (tried, -tried) if grid.symmetric else (tried,):
            wide = signed.unsqueeze(-1), tried_zero.unsqueeze(-1)
            error = (importance * (grid.decode(grid.encode(groups, *wide), *wide) - groups).square()).sum(-1)
            better = error < least
            least[better], scale[better], zero[better] = error[better], signed[better], tried_zero[better]
    return scale, zero


@pytest.mark.parametrize("at_once", [1, 2000, ranges.AT_ONCE])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tries_at_once_find_what_one_after_the_other_finds(monkeypatch, grid, at_once):
    """Also where errors are equal, infinite or no numbers."""
    groups = torch.randn(9, 2, 16, generator=torch.Generator().manual_seed(0))
    groups[1], groups[2], groups[3] = 0, groups[2].round(), 1e30
    groups[4, 0, 0], groups[5, 1, 3] = torch.inf, torch.nan
    importance = torch.linspace(0, 2, 32).view(2, 16)
    monkeypatch.setattr(ranges, "AT_ONCE", at_once)
    found = ranges.find_range(groups, grid, True, importance)
    for one, two in zip(found, one_after_the_other(groups, grid, importance), strict=True):
        assert torch.equal(one.nan_to_num(7), two.nan_to_num(7))
