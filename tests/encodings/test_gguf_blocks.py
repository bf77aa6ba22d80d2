"""The bytes of GGUF's types: layout and values are those of the package gguf, and codes of ours keep their values."""

import gguf
import pytest
import torch
from golden_vectors import golden

from jettison.encodings.gguf_blocks import FULL, TYPES, pack_blocks, pack_full, regrouped, unpack_blocks
from jettison.encodings.gguf_k_blocks import K_TYPES, KBlocks
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.numerics.ranges import find_range

CASES = golden("gguf")


def decoded(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    """The values that the package gives for bytes (rows, bytes)."""
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]).copy())


def quantized(grid, columns: int = 256, rows: int = 6) -> QuantizedWeight:
    """A random weight on a grid, with a dead row."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.1
    weight[1] = 0
    return QuantizedWeight.nearest(weight, *find_range(grid.grouped(weight), grid, clip=True), grid)


@pytest.mark.parametrize("case", [case for case in CASES if case["type"] in TYPES], ids=lambda case: case.key)
def test_blocks_of_32_are_those_of_the_package(case):
    kind, raw = TYPES[case["type"]], case.tensor("raw")
    weight = unpack_blocks(raw, kind)
    assert torch.equal(weight.dequantize(), case.tensor("dequant"))
    assert torch.equal(pack_blocks(weight, kind), raw)


@pytest.mark.parametrize("case", [case for case in CASES if case["type"] in K_TYPES], ids=lambda case: case.key)
def test_blocks_of_256_are_those_of_the_package(case):
    kind, raw = case["type"], case.tensor("raw").reshape(-1, case["type_size"])
    blocks = KBlocks.unpack(raw, kind)
    assert torch.equal(blocks.values().reshape(case.tensor("dequant").shape), case.tensor("dequant"))
    assert torch.equal(blocks.pack(), raw)


def test_the_golden_vectors_cover_every_type():
    assert {case["type"] for case in CASES} == {*TYPES, *K_TYPES} - {"Q5_1"}


@pytest.mark.parametrize("kind", FULL)
def test_full_precision_is_stored_as_it_is(kind):
    weight = torch.randn(3, 40).to(FULL[kind])
    assert torch.equal(decoded(pack_full(weight, kind), kind).to(FULL[kind]), weight)


@pytest.mark.parametrize("width", [32, 128, -1])
@pytest.mark.parametrize(
    "bits, symmetric, kinds",
    [(2, True, ["Q4_0", "Q5_0", "Q8_0"]), (2, False, ["Q4_0", "Q5_0", "Q8_0"]), (3, True, ["Q4_0"]),
     (4, True, ["Q4_0", "Q5_0", "Q8_0"]), (4, False, ["Q5_0", "Q8_0"]), (5, True, ["Q5_0", "Q8_0"]),
     (6, True, ["Q8_0"]), (8, True, ["Q8_0"])],
)  # fmt: skip
def test_integers_keep_their_values(bits, symmetric, kinds, width):
    weight = quantized(UniformGrid(bits, width, symmetric))
    for kind in kinds:
        blocks = pack_blocks(regrouped(weight, TYPES[kind]), TYPES[kind])
        assert torch.equal(decoded(blocks, kind), weight.dequantize())


@pytest.mark.parametrize("kind, bits", [("Q4_1", 4), ("Q5_1", 5), ("Q5_1", 4)])
def test_zero_points_become_minima(kind, bits):
    """Minima are rounded to float16; nothing else changes."""
    weight = quantized(UniformGrid(bits, 64, False))
    other = regrouped(weight, TYPES[kind])
    values, expected = decoded(pack_blocks(other, TYPES[kind]), kind), weight.dequantize()
    assert (values - expected).abs().max() <= 2**-11 * other.zero.abs().max()
    affine = quantized(OffsetGrid(bits, 32))
    assert torch.equal(decoded(pack_blocks(regrouped(affine, TYPES[kind]), TYPES[kind]), kind), affine.dequantize())


def test_what_does_not_fit_is_not_stored():
    assert regrouped(quantized(UniformGrid(5, 32)), TYPES["Q4_0"]) is None  # too many codes
    assert regrouped(quantized(UniformGrid(8, 32, False)), TYPES["Q5_1"]) is None
    assert regrouped(quantized(UniformGrid(4, 16)), TYPES["Q4_0"]) is None  # two scales in a block
    assert regrouped(quantized(UniformGrid(4, -1), columns=48), TYPES["Q4_0"]) is None
    assert regrouped(quantized(OffsetGrid(4, 32)), TYPES["Q4_0"]) is None
    weight = quantized(UniformGrid(4, 32, scale_type="float32"))
    huge = QuantizedWeight(weight.codes, torch.full_like(weight.scale, 1e6), None, weight.grid)
    assert regrouped(huge, TYPES["Q4_0"]) is None  # float16 ends at 65504
