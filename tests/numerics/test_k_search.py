"""The search for scales of K types: never worse than the plain packing, and exact where the type can be."""

import gguf
import pytest
import torch

from jettison.encodings.gguf_k_blocks import K_TYPES, KBlocks
from jettison.graph.folder import ModelFolder
from jettison.numerics.k_search import fit_k, plain

RNG = torch.Generator().manual_seed(0)


def values(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    """Decode bytes (rows, bytes), as the package gguf and as we do."""
    ours = KBlocks.unpack(blocks.reshape(-1, K_TYPES[kind].size), kind).values().reshape(len(blocks), -1)
    assert torch.equal(torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]).copy()), ours)
    return ours


def error(blocks, kind, weight, importance=1.0):
    """The squared error of every row."""
    return ((values(blocks, kind) - weight).square() * importance).sum(1)


def weights():
    yield torch.randn(8, 512, generator=RNG) * 0.05
    yield torch.randn(4, 256, generator=RNG).exp()  # all positive
    yield torch.cat([torch.zeros(1, 256), torch.full((1, 256), 0.3), torch.full((1, 256), -0.3), torch.eye(1, 256)])
    source = ModelFolder("scribe")
    yield source.read("model.layers.3.mlp.up_proj.weight")[:12].float()
    yield source.read("model.layers.5.mlp.down_proj.weight")[:6].float()


@pytest.mark.parametrize("kind", K_TYPES)
def test_the_search_is_never_worse_than_the_plain_packing(kind):
    for number, weight in enumerate(weights()):
        importance = torch.rand(weight.shape[1], generator=RNG) ** 3 * 4 + 0.01
        simple, fitted, weighted = plain(weight, kind), fit_k(weight, kind), fit_k(weight, kind, importance)
        slack = 1e-6 * weight.square().sum(1)
        assert (error(fitted, kind, weight) <= error(simple, kind, weight) + slack).all(), number
        assert (error(weighted, kind, weight, importance) <= error(simple, kind, weight, importance) + slack).all()
        if number != 2:  # ordinary weights: clearly better, and better where it matters if that is known
            assert error(fitted, kind, weight).sum() < 0.95 * error(simple, kind, weight).sum(), number
            known = error(weighted, kind, weight, importance).sum()
            assert known < 0.95 * error(fitted, kind, weight, importance).sum(), number


@pytest.mark.parametrize("kind, bits", [("Q2_K", 2), ("Q4_K", 4), ("Q3_K", 3), ("Q6_K", 6)])
def test_one_scale_for_a_block_is_stored_exactly(kind, bits):
    """Weights on a symmetric grid of 256 or more: a power of two times d is the scale."""
    codes = torch.randint(0, 2**bits, (4, 512), generator=RNG) - 2 ** (bits - 1)
    scale = torch.tensor([[0.01], [-0.02], [0.5], [0.007]]).bfloat16().float()
    weight, middle = codes * scale, 2 ** (bits - 1)
    groups = 512 // K_TYPES[kind].width
    start = (scale.abs().repeat(1, groups), (scale.abs() * middle).repeat(1, groups))
    if not K_TYPES[kind].minimum:
        start = (scale.repeat(1, groups), None)
    positive = scale[:, 0] > 0 if K_TYPES[kind].minimum else slice(None)
    assert torch.equal(values(fit_k(weight, kind, start=start), kind)[positive], weight[positive])


def test_dead_columns_are_rounded_too():
    weight, importance = torch.randn(2, 256, generator=RNG), torch.zeros(256)
    for importance in (torch.zeros(256), torch.eye(1, 256)[0]):
        assert (values(fit_k(weight, "Q2_K", importance), "Q2_K") - weight).abs().max() < 2
