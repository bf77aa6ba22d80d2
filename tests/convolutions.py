"""Random convolutions and chains of them, and the check that a merged one computes the same."""

from functools import reduce

import torch
from hypothesis import settings
from hypothesis import strategies as st

from jettison.numerics.merging import (
    Convolution,
)

many = settings(max_examples=120, deadline=None)
strides, dilations, kernels = st.integers(1, 3), st.integers(1, 2), st.integers(1, 7)
seeds = st.integers(0, 10**6)
sizes = st.tuples(st.integers(1, 17), st.integers(1, 17))
paddings = st.one_of(
    st.just((0, 0, 0, 0)), st.integers(0, 3).map(lambda p: (p,) * 4), st.tuples(*[st.integers(0, 3)] * 4)
)


def random(shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(ins, outs, kernel=(1, 1), *rest, groups=1, seed=0, bias=True, **fields) -> Convolution:
    """Return a random convolution. rest, fields: stride, dilation, padding."""
    shape = (outs, ins // groups, *kernel)
    weight = random(shape, seed) / (shape[1] * shape[2] * shape[3]) ** 0.5
    return Convolution(weight, random(outs, seed + 1) if bias else random(outs, 0) * 0, *rest, groups=groups, **fields)


def divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


@st.composite
def convolutions(draw, ins=None, padding=paddings, most=7, **fields) -> Convolution:
    """Draw a convolution: dense, grouped or depthwise, with a multiplier or without.

    ins: input channels; drawn if None. most: longest kernel. fields: values that are not drawn.
    """
    ins = ins or draw(st.sampled_from([1, 2, 4, 6, 8, 12]))
    groups = draw(st.sampled_from(divisors(ins)))
    outs = groups * draw(st.integers(1, max(1, 12 // groups)))
    kernel = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    drawn = {
        "stride": draw(st.tuples(strides, strides)),
        "dilation": draw(st.tuples(dilations, dilations)),
        "padding": draw(padding),
    }
    return make(ins, outs, kernel, groups=groups, **{"seed": draw(seeds), "bias": draw(st.booleans())} | drawn | fields)


@st.composite
def chains(draw, length=st.integers(2, 3), **kinds) -> list[Convolution]:
    """Draw convolutions that follow each other. kinds: of the padding of the first and of the others."""
    chain = []
    for number in range(draw(length)):
        padding = kinds.get("first", paddings) if number == 0 else kinds.get("others", paddings)
        chain.append(draw(convolutions(chain[-1].channels[1] if chain else None, padding, most=5)))
    return chain


def run(chain, x: torch.Tensor) -> torch.Tensor:
    return reduce(lambda value, conv: conv(value), chain, x)


def legal(size: tuple[int, int], convs) -> bool:
    """Return whether every convolution has an output. A dilated "same" may have one for 1 pixel and none for 2."""
    for conv in convs:
        size = conv.output_size(*size)
        if min(size) < 1:
            return False
    return True


def smallest(*convs: Convolution) -> tuple[int, int]:
    """Return the smallest input size for which every convolution has an output."""

    height = next(size for size in range(1, 400) if legal((size, 400), convs))
    return height, next(size for size in range(1, 400) if legal((400, size), convs))


def check(merged: Convolution, chain: list[Convolution], extra: tuple[int, int] = (0, 0), seed: int = 0, *, to=None):
    """Compare outputs in float64 and float32, for the smallest input and for one larger by ``extra``.

    to: a function that returns the expected output; the chain's outputs if None.
    """
    low = smallest(*chain)
    expected = to or (lambda x: run(chain, x))
    for size in {low, (low[0] + 1, low[1] + 1), (low[0] + extra[0], low[1] + extra[1])}:
        if not legal(size, chain):
            continue
        x = random((2, chain[0].channels[0], *size), seed + 2)
        torch.testing.assert_close(merged(x), expected(x), rtol=1e-10, atol=1e-10)
        small = merged.to(torch.float32)(x.float())
        torch.testing.assert_close(
            small.double(), expected(x), rtol=1e-4, atol=1e-4 * max(1, float(expected(x).abs().max()))
        )
