"""The block DCT: the reference vectors, exact inverse, energy, gradients, and what is refused."""

import pytest
import torch
from privatar_vectors import tensors

from jettison.core.errors import UsageError
from jettison.numerics.block_dct import BlockDCT, InverseBlockDCT, block_dct, dct_matrix, inverse_block_dct


@pytest.mark.parametrize("block", [4, 8])
def test_the_reference_vectors(block):
    expected = tensors()[f"coef_{block}"]  # (channel, row, column, u, v)
    components = block_dct(tensors()["image"], block)
    assert components.shape == (block**2, 3, 32 // block, 32 // block)
    layout = expected.permute(3, 4, 0, 1, 2).flatten(0, 1)
    torch.testing.assert_close(components, layout, atol=1e-10, rtol=0)


def test_the_image_of_some_components():
    components = block_dct(tensors()["image"], 4)
    components[8:] = 0
    torch.testing.assert_close(inverse_block_dct(components, 4), tensors()["recon_4_first8"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 8, 16])
def test_any_block_is_orthonormal_and_inverted(block):
    matrix = dct_matrix(block)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(block, dtype=torch.float64), atol=1e-12, rtol=0)
    images = torch.randn(2, 3, 2 * block, 5 * block, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    components = block_dct(images, block)
    assert components.shape == (2, block**2, 3, 2, 5)
    assert float(components.square().sum()) == pytest.approx(float(images.square().sum()), rel=1e-12)
    torch.testing.assert_close(inverse_block_dct(components, block), images, atol=1e-12, rtol=0)
    single = inverse_block_dct(block_dct(images.float(), block), block)
    assert (single - images.float()).abs().max() < 1e-5


def test_the_order_of_components():
    """Component u · N + v: a picture that changes only from row to row has only components with v = 0."""
    rows = torch.arange(8.0)[:, None].expand(8, 8)[None]
    energy = block_dct(rows, 4).square().sum((-3, -2, -1))
    assert {place for place in range(16) if energy[place] > 1e-6} <= {0, 4, 8, 12}
    assert energy[4] > 1 and block_dct(rows.transpose(-1, -2), 4).square().sum((-3, -2, -1))[1] > 1


def test_the_layers_have_gradients():
    images = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    forward, back = BlockDCT(3), InverseBlockDCT(3)
    assert torch.autograd.gradcheck(forward, images)
    assert torch.autograd.gradcheck(lambda x: back(forward(x).square()), images)
    assert "block=3" in repr(back)


def test_what_is_refused():
    with pytest.raises(UsageError, match="divides 6 and 8"):
        block_dct(torch.zeros(1, 6, 8), 4)
    with pytest.raises(UsageError, match="15 components: blocks of 4 have 16"):
        inverse_block_dct(torch.zeros(15, 1, 2, 2), 4)
    with pytest.raises(UsageError, match="at least 1"):
        dct_matrix(0)
