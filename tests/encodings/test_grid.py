"""Uniform grids and the packing of their codes."""

import pytest
import torch
from golden_vectors import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from jettison.core.errors import UsageError
from jettison.encodings.quantized import QuantizedWeight, pack, unpack
from jettison.encodings.uniform import UniformGrid


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 150), seed=st.integers(0, 9))
def test_unpack_inverts_pack(bits, rows, columns, seed):
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack(words, bits, columns), codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_unpack_takes_a_transposed_row(bits):
    """Zero points of a matrix with few rows are one row of words, (1, groups), and are unpacked transposed."""
    codes = torch.arange(4, dtype=torch.uint8).repeat(5, 1) + torch.arange(5, dtype=torch.uint8).unsqueeze(1) % 3
    words = pack(codes, bits).T.contiguous()  # (1, 5)
    assert words.shape == (1, 5) and torch.equal(unpack(words.T, bits, 4), codes)


@pytest.mark.parametrize("case", golden("compressed_tensors"), ids=lambda case: case.key)
def test_packing_is_that_of_compressed_tensors(case):
    bits = case["num_bits"]
    unsigned = lambda signed: (signed.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    codes = unsigned(case.tensor("int_values"))
    assert torch.equal(pack(codes, bits), case.tensor("weight_packed"))
    if not case["symmetric"]:
        zeros = unsigned(case.tensor("zero_point"))
        assert torch.equal(pack(zeros.T.contiguous(), bits).T, case.tensor("weight_zero_point"))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_point_of_the_grid_is_kept(bits, symmetric):
    """Values that already lie on a grid do not change when they are quantized."""
    grid = UniformGrid(bits, 16, symmetric)
    codes = torch.randint(0, 2**bits, (6, 64), generator=torch.Generator().manual_seed(0)).float()
    scale = (torch.rand(6, 4) + 0.1).bfloat16().float() * torch.tensor([1.0, -1.0, 1.0, 1.0])
    zero = torch.full((6, 4), float(grid.zero_code)) if symmetric else torch.randint(0, 2**bits, (6, 4)).float()
    weight = QuantizedWeight.of(codes, scale, zero, grid)
    requantized = QuantizedWeight.nearest(weight.dequantize(), scale, zero, grid)
    assert torch.equal(requantized.codes, weight.codes)


def test_degenerate_groups_are_finite():
    weight = torch.zeros(4, 32)
    weight[1] = 3.0
    weight[2] = -1e-30
    weight[3, 0] = 1e30
    for symmetric in (True, False):
        grid = UniformGrid(4, 16, symmetric)
        groups = grid.grouped(weight)
        scale, zero = grid.scale_zero(groups.amin(-1), groups.amax(-1))
        dense = QuantizedWeight.nearest(weight, scale, zero, grid).dequantize()
        assert torch.isfinite(dense).all()
        assert torch.equal(dense[0], weight[0])
        # A symmetric grid has one step less above zero than below, hence the tolerance.
        assert torch.allclose(dense[1], weight[1], rtol=0.07)


def test_zero_stays_zero():
    grid = UniformGrid(3, 32, symmetric=False)
    scale, zero = grid.scale_zero(torch.tensor([0.5]), torch.tensor([2.0]))  # a range that does not contain 0
    assert grid.encode(torch.zeros(1), scale, zero) == zero


def test_bits_per_weight_counts_scale_and_zero_point():
    assert UniformGrid(2, 64, symmetric=True).bits_per_weight(256) == 2 + 16 / 64
    assert UniformGrid(2, 64, symmetric=False).bits_per_weight(256) == 2 + 18 / 64
    assert UniformGrid(4, -1, symmetric=True).bits_per_weight(256) == 4 + 16 / 256


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UniformGrid(1), "bits = 1"),
        (lambda: UniformGrid(9), "2 to 8"),
        (lambda: UniformGrid(4, 0), "group_size = 0"),
        (lambda: UniformGrid(4, 48).groups(128), "48 does not divide a row of 128"),
    ],
)
def test_bad_grids_say_what_would_be_valid(make, words):
    with pytest.raises(UsageError, match=words):
        make()
