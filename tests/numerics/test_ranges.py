"""The search for clipped ranges."""

import pytest
import torch

from jettison.encodings.offset import OffsetGrid
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.numerics import ranges

GRIDS = [UniformGrid(2, -1), UniformGrid(4, -1, symmetric=False), ValueTable("nf4"), OffsetGrid(4)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tries_at_once_find_what_one_after_the_other_finds(monkeypatch, grid):
    """Also where errors are equal, infinite or no numbers."""
    groups = torch.randn(9, 2, 16, generator=torch.Generator().manual_seed(0))
    groups[1], groups[2], groups[3] = 0, groups[2].round(), 1e30
    groups[4, 0, 0], groups[5, 1, 3] = torch.inf, torch.nan
    importance = torch.linspace(0, 2, 32).view(2, 16)
    found = ranges.find_range(groups, grid, True, importance)
    monkeypatch.setattr(ranges, "AT_ONCE", 1)
    alone = ranges.find_range(groups, grid, True, importance)
    assert all(
        torch.equal(torch.nan_to_num(one, 7), torch.nan_to_num(two, 7)) for one, two in zip(found, alone, strict=True)
    )
