"""Statistics of a linear that a block calls more than once."""

import torch
from torch import nn

from jettison.graph.anatomy import make_linear
from jettison.graph.families import families
from jettison.statistics.stats import watch


def test_the_calls_of_the_two_models_correspond_in_their_order():
    """The second call has fewer tokens than the first; the cross moments pair each with its own originals."""
    torch.manual_seed(0)
    block = nn.ModuleDict({"q": nn.Linear(3, 2, bias=False)})
    linear = make_linear("block.q", ("q",), 2, 3, 0, families()["llama"])
    original, inputs = (tuple(torch.randn(tokens, 3) for tokens in (5, 2)) for _ in range(2))
    with watch(block, "block", [linear]) as watching:
        watching.original = True
        for x in original:
            block["q"](x)
        watching.original = False
        for x in inputs:
            block["q"](x)
    stats = watching.stats[linear.inputs]
    x0, x = torch.cat(original), torch.cat(inputs)
    assert stats.tokens == 7
    assert torch.allclose(stats.cross, x0.T @ x / 7, atol=1e-6)
    assert torch.allclose(stats.hessian, x.T @ x / 7, atol=1e-6)
