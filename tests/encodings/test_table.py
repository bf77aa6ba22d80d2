"""Value tables: their values; and they are stored, loaded and multiplied as uniform grids are."""

import math

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.table import TABLES, ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.graph.modules import PackedLinear
from jettison.numerics.ranges import find_range

GRIDS = [UniformGrid(4, 16), UniformGrid(3, -1, symmetric=False), ValueTable("nf4", 16), ValueTable("fp4", -1)]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", [0.25, -3.0])
def test_every_value_is_its_own_nearest(name, scale):
    grid, values = ValueTable(name), torch.tensor(TABLES[name])
    codes = grid.encode(values * scale, torch.tensor(scale), torch.tensor(0.0))
    assert torch.equal(grid.decode(codes, torch.tensor(scale), 0), values * scale)
    assert float(grid.decode(torch.tensor([float(grid.zero_code)]), torch.tensor(scale), 0)) == 0


def test_nf4_has_the_quantiles_of_a_normal_distribution():
    """NF4 has seven quantiles below zero, zero, and eight above, scaled to 1.

    Source: arXiv:2305.14314, appendix E: eight quantiles for the negative and nine for the positive part; both contain
    zero, which is counted once.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    expected = torch.cat([negative, torch.zeros(1), positive]).sort().values / positive.max()
    assert torch.allclose(torch.tensor(TABLES["nf4"]), expected, atol=1e-4)


def test_fp4_is_e2m1():
    for code, value in enumerate(TABLES["fp4"]):
        sign, exponent, mantissa = -1 if code & 8 else 1, (code >> 1) & 3, code & 1
        assert value == sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("clip", [True, False])
def test_what_is_stored_is_what_was_meant(grid, clip):
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    scale, zero = find_range(grid.grouped(weight), grid, clip)
    packed = QuantizedWeight.nearest(weight, scale, zero, grid)
    error = float((packed.dequantize() - weight).square().mean() / weight.square().mean())
    assert error < 0.08
    module = PackedLinear.of(packed)
    assert torch.equal(module.weight, packed.dequantize())
    x = torch.randn(3, 64)
    assert torch.allclose(module(x), x @ packed.dequantize().T, atol=1e-5)
    exact = grid.bits_per_weight(64) * weight.numel() / 8
    assert packed.nbytes == sum(part.nbytes for part in packed.parts().values())
    assert exact <= packed.nbytes <= exact + 24 * 4, "but for words that are not full"


def test_nf4_beats_integers_on_normal_weights():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    errors = {}
    for grid in (ValueTable("nf4", 64), UniformGrid(4, 64)):
        packed = QuantizedWeight.nearest(weight, *find_range(grid.grouped(weight), grid, False), grid)
        errors[type(grid)] = float((packed.dequantize() - weight).square().mean())
    assert errors[ValueTable] < 0.9 * errors[UniformGrid]


def test_a_group_of_zeros():
    grid = ValueTable("nf4", 8)
    packed = QuantizedWeight.nearest(torch.zeros(2, 8), *find_range(torch.zeros(2, 1, 8), grid, True), grid)
    assert torch.equal(packed.dequantize(), torch.zeros(2, 8)) and math.isfinite(float(packed.scale.max()))


def test_what_is_no_table():
    with pytest.raises(UsageError, match=r"unknown values 'nf5' \(did you mean 'nf4'\?\); valid: fp4, nf4"):
        ValueTable("nf5")
    with pytest.raises(UsageError, match="group_size = 0"):
        ValueTable("nf4", 0)
