"""Merging convolutions: the merged one has the outputs of what it merges, at borders too, or is refused."""

from dataclasses import replace
from math import gcd

import pytest
import torch
from convolutions import (
    chains,
    check,
    convolutions,
    dilations,
    divisors,
    make,
    many,
    paddings,
    random,
    run,
    seeds,
    sizes,
    smallest,
    strides,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.numerics import merging
from jettison.numerics.merging import (
    Same,
    add_shortcut,
    compose,
    crop,
    merge_chain,
    norm_as_scale,
    pad_once,
    scale_after,
    scale_before,
)

# Norms and scales.


@many
@given(convolutions(), sizes, seeds, st.booleans())
def test_a_batch_norm_behind(conv, extra, seed, affine):
    norm = nn.BatchNorm2d(conv.channels[1], affine=affine, dtype=torch.float64).eval()
    norm.running_mean, norm.running_var = random(conv.channels[1], seed), random(conv.channels[1], seed + 1).square()
    if affine:
        norm.weight.data, norm.bias.data = random(conv.channels[1], seed + 2), random(conv.channels[1], seed + 3)
    scale, shift = norm_as_scale(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    scale, shift = scale.detach(), shift.detach()
    low = smallest(conv)
    x = random((2, conv.channels[0], low[0] + extra[0], low[1] + extra[1]), seed + 4)
    expected = norm(conv(x)).detach()
    limit = 1e-10 * float(scale.abs().max().clamp(min=1))  # channels of small variance are scaled up, errors too
    torch.testing.assert_close(scale_after(conv, scale, shift)(x), expected, rtol=1e-10, atol=limit)
    single = scale_after(conv.to(torch.float32), scale, shift)
    assert single.weight.dtype == single.bias.dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), expected, rtol=1e-4, atol=limit * 1e6)


@many
@given(convolutions(), sizes, seeds)
def test_a_scale_before(conv, extra, seed):
    scale, shift = random(conv.channels[0], seed), random(conv.channels[0], seed + 1)
    shaped = lambda values: values[None, :, None, None]
    check(scale_before(conv, scale, shift * 0), [conv], extra, to=lambda x: conv(x * shaped(scale)))
    bare = replace(conv, padding=(0, 0, 0, 0))
    check(scale_before(bare, scale, shift), [bare], extra, to=lambda x: bare(x * shaped(scale) + shaped(shift)))
    if any(conv.padding):
        with pytest.raises(UsageError, match="pad the input once, before the norm"):
            scale_before(conv, scale, shift)


def test_single_numbers_scale_all_channels():
    conv, x = make(2, 4, (3, 3), groups=2), random((1, 2, 5, 5), 3)
    scaled = scale_after(conv, torch.tensor(2.0), torch.tensor(1.0))
    torch.testing.assert_close(scaled(x), conv(x) * 2 + 1)
    torch.testing.assert_close(scale_before(conv, torch.tensor(2.0), torch.tensor(1.0))(x), conv(x * 2 + 1))


# Chains.


@many
@given(chains(first=st.one_of(paddings, st.just("same")), others=st.just((0, 0, 0, 0))), sizes, seeds)
def test_a_chain_is_one_convolution(chain, extra, seed):
    merged = merge_chain(chain)
    check(merged, chain, extra, seed)
    assert merged.groups == gcd(*(conv.groups for conv in chain))
    assert merged.stride == tuple(torch.tensor([conv.stride for conv in chain]).prod(0).tolist())


@many
@given(convolutions(bias=False), st.one_of(paddings, st.just("same")), sizes, seeds)
def test_a_pointwise_layer_without_bias_lets_the_second_pad(second, padding, extra, seed):
    second = replace(second, padding=padding)
    stride = (1, 1) if padding == "same" else (1 + seed % 3, 1 + seed % 2)
    first = make(5, second.channels[0], (1, 1), stride, seed=seed, bias=False)
    check(compose(first, second), [first, second], extra, seed)


@many
@given(chains(first=paddings, others=st.one_of(paddings, st.just("same"))), sizes, seeds)
def test_a_padded_chain_is_exact_or_refused(chain, extra, seed):
    try:
        merged = compose(chain[0], chain[1])
    except UsageError as error:
        assert "pad_once" in str(error) or "to the front of its chain" in str(error)
        return
    check(merged, chain[:2], extra, seed)


@pytest.mark.parametrize("padding", [(0, 1, 0, 0), (0, 0, 2, 0), "same"])
def test_padding_behind_a_bias_or_a_kernel_is_refused(padding):
    second = make(4, 4, (3, 3), padding=padding)
    for first, reason in ((make(4, 4), "a bias"), (make(4, 4, (3, 3), bias=False), "a kernel along a padded axis")):
        with pytest.raises(UsageError, match=f"the first has {reason}.*pad_once"):
            compose(first, second)
        compose(*pad_once([first, second]))
    compose(make(4, 4, (3, 1), bias=False), make(4, 4, (1, 3), padding=(1, 1, 0, 0)))  # the axes do not meet


def test_groups_that_align_stay_and_others_become_dense():
    depthwise, dense_one = make(6, 6, (3, 3), groups=6), make(6, 6, groups=1)
    assert compose(depthwise, make(6, 12, (3, 3), groups=6)).groups == 6
    assert compose(make(6, 6, groups=6), make(6, 6, groups=3)).groups == 3
    assert compose(make(6, 6, groups=3), make(6, 6, groups=2)).groups == 1
    assert compose(depthwise, dense_one).groups == compose(dense_one, depthwise).groups == 1


def test_a_wide_mlp_merges_before_the_depthwise_layer_joins(monkeypatch):
    chain, sizes = [make(4, 4, (7, 7), groups=4), make(4, 64), make(64, 4)], []
    monkeypatch.setattr(merging, "compose", lambda *pair: sizes.append(compose(*pair).weight.numel()) or compose(*pair))
    check(merge_chain(chain), chain)
    assert sizes == [4 * 4, 4 * 4 * 7 * 7]


def test_the_largest_dilation_is_kept():
    one, three = make(2, 2), make(2, 2, (3, 3), dilation=(2, 2))
    assert compose(one, three).dilation == compose(three, one).dilation == compose(three, three).dilation == (2, 2)
    assert compose(three, three).kernel == (5, 5)
    mixed = compose(three, make(2, 2, (3, 3)))
    assert (mixed.dilation, mixed.kernel) == ((1, 1), (7, 7))
    sparse = compose(make(2, 2, stride=(2, 2)), make(2, 2, (3, 3)))
    assert (sparse.dilation, sparse.kernel, sparse.stride) == ((2, 2), (3, 3), (2, 2))


@many
@given(chains(), seeds)
def test_padding_once_keeps_output_sizes_and_merges(chain, seed):
    padded = pad_once(chain)
    assert not any(any(conv.padding) for conv in padded[1:])
    merged = merge_chain(padded)
    prefix, total = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    for conv in chain:
        total += prefix * torch.tensor(conv.padding)
        prefix *= torch.tensor(conv.stride).flip(0).repeat_interleave(2)
    assert padded[0].padding == merged.padding == tuple(total.tolist())
    low = smallest(*chain)
    for size in range(5, 21):
        if size >= max(low):
            x = random((1, chain[0].channels[0], size, 25 - size if 25 - size >= low[1] else size), seed)
            by_hand = functional.pad(x, tuple(total.tolist()))
            for conv in chain:
                by_hand = functional.conv2d(by_hand, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
            assert by_hand.shape == run(chain, x).shape
            torch.testing.assert_close(merged(x), by_hand, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(run(padded, x), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (5, 4), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (1, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_an_inverted_residual_with_same_padding(kernel, stride, dilation):
    """The depthwise padding moves before the expansion, and the merged convolution has a "same" of its own."""
    depthwise = make(6, 6, kernel, stride, (dilation,) * 2, "same", groups=6, seed=2)
    chain = [make(3, 6, padding="same", seed=1), depthwise, make(6, 4, padding="same", seed=3)]
    padded = pad_once(chain)
    merged = merge_chain(padded)
    assert merged.padding == "same" or stride == (1, 1)
    for size in range(5, 21):
        x = random((1, 3, size, 26 - size), size)
        sides = depthwise.sides(*x.shape[2:])
        if min(depthwise.output_size(*x.shape[2:])) < 1:
            continue
        by_hand = run([replace(conv, padding=(0, 0, 0, 0)) for conv in chain], functional.pad(x, sides))
        assert by_hand.shape == run(chain, x).shape
        torch.testing.assert_close(run(padded, x), by_hand, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(merged(x), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("zeros", [1, 2])
def test_fixed_padding_joins_a_same_padding(zeros):
    first = make(2, 2, (3, 3), (2, 2), padding="same")
    second = make(2, 2, (3, 3), padding="same" if zeros == 1 else (2, 2, 2, 2), seed=5)
    merged = merge_chain(pad_once([first, second]))
    # SAME padding of 7 x 7 with stride 2 is that of 3 x 3 with stride 2, and 2 on every side.
    assert merged.padding == ("same" if zeros == 1 else Same((3, 3), (2, 2), (1, 1), (4, 4, 4, 4)))
    for size in range(5, 21):
        x = random((1, 2, size, 26 - size), size)
        left, right, top, bottom = first.sides(*x.shape[2:])
        by_hand = functional.pad(x, tuple(side + 2 * zeros for side in (left, right, top, bottom)))
        for conv in (first, second):
            by_hand = functional.conv2d(by_hand, conv.weight, conv.bias, conv.stride)
        torch.testing.assert_close(merged(x), by_hand, rtol=1e-10, atol=1e-10)
        assert by_hand.shape == run([first, second], x).shape


def test_a_same_padding_behind_what_changes_the_size():
    same = make(2, 2, (3, 3), (2, 2), padding="same")
    with pytest.raises(UsageError, match="behind a stride of 2"):
        pad_once([make(2, 2, (3, 3), (2, 2)), same])
    with pytest.raises(UsageError, match="change the size by -1"):
        pad_once([make(2, 2, (2, 2)), same])
    chain = [make(2, 2, (3, 3)), same]  # two pixels less change nothing in what a stride of 2 leaves over
    merged = merge_chain(pad_once(chain))
    assert all(merged.output_size(n, 25 - n) == chain[1].output_size(n - 2, 23 - n) for n in range(5, 21))


def test_empty_chains_and_other_channels_are_refused():
    for function in (pad_once, merge_chain):
        with pytest.raises(UsageError, match="empty chain"):
            function([])
    with pytest.raises(UsageError, match="channels between them must be equal"):
        compose(make(2, 4), make(2, 4))


# Groups, crops.


@many
@given(convolutions(), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.booleans(), sizes)
def test_a_crop_drops_the_outer_taps(conv, cut, same, extra):
    keep = tuple(kernel - 2 * taps for kernel, taps in zip(conv.kernel, cut, strict=True))
    assume(min(keep) >= 1)
    (tall, wide), (left, right, top, bottom) = cut, conv.padding
    rows, columns = tall * conv.dilation[0], wide * conv.dilation[1]
    weight = torch.zeros_like(conv.weight)
    inner = (..., slice(tall, tall + keep[0]), slice(wide, wide + keep[1]))
    weight[inner] = conv.weight[inner]
    if same:
        conv = replace(conv, padding="same")
        refused = any(taps and s > 1 and k < s for taps, s, k in zip(cut, conv.stride, keep, strict=True))
    else:
        refused = min(left, right) < columns or min(top, bottom) < rows
    if refused:
        with pytest.raises(UsageError, match="padding must cover the taps"):
            crop(conv, keep)
        return
    cropped, outer = crop(conv, keep), replace(conv, weight=weight)
    assert cropped.kernel == keep
    assert not same or cropped.padding == "same" or conv.stride.count(1) or max(keep) == 1 or keep.count(1)
    check(cropped, [outer], extra)


@pytest.mark.parametrize("kernel", [(2, 3), (3, 7), (0, 3), (-1, 1)])
def test_crops_by_odd_or_negative_numbers_are_refused(kernel):
    with pytest.raises(UsageError, match="valid are kernels smaller by an even number"):
        crop(make(2, 2, (3, 5), padding=(2, 2, 1, 1)), kernel)


# Shortcuts.


@many
@given(st.data(), st.tuples(dilations, dilations), st.tuples(strides, strides), seeds, sizes)
def test_a_shortcut_of_a_smaller_kernel(data, dilation, stride, seed, extra):
    """The shortcut's taps stand anywhere inside the kernel; its padding is what puts them there."""
    pair = st.tuples(st.integers(1, 5), st.integers(1, 5))
    kernel, smaller, grown = data.draw(pair), data.draw(pair), data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    smaller = tuple(map(min, kernel, smaller))
    at = [data.draw(st.integers(0, k - s)) for k, s in zip(kernel, smaller, strict=True)]  # first tap
    (top, left), (bottom, right) = at, [k - s - a for k, s, a in zip(kernel, smaller, at, strict=True)]
    sides = (left * dilation[1], right * dilation[1], top * dilation[0], bottom * dilation[0])
    channels = data.draw(st.sampled_from([1, 4, 6]))
    mine, its = (data.draw(st.sampled_from(divisors(channels))) for _ in range(2))
    padding = tuple(map(sum, zip(sides, grown, strict=True)))
    conv = make(channels, 2 * channels, kernel, stride, dilation, padding, groups=mine, seed=seed)
    shortcut = make(channels, 2 * channels, smaller, stride, dilation, grown, groups=its, seed=seed + 9)
    merged = add_shortcut(conv, shortcut)
    assert merged.kernel == kernel and merged.groups == gcd(mine, its)
    check(merged, [conv], extra, to=lambda x: conv(x) + shortcut(x))


@many
@given(convolutions(padding=st.one_of(paddings, st.just("same"))), st.booleans(), st.booleans(), seeds, sizes)
def test_a_shortcut_is_exact_or_refused(conv, identity, centred, seed, extra):
    if identity:
        conv, shortcut = replace(conv, stride=(1, 1)), None
        assume(conv.channels[0] == conv.channels[1])
    else:
        shortcut = make(*conv.channels, stride=conv.stride, seed=seed)
    if centred and conv.padding != "same":
        tall, wide = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel, strict=True))
        conv = replace(conv, padding=(wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
    left, right, top, bottom = conv.sides(9, 9)
    reads = zip((top, left), conv.dilation, conv.kernel, strict=True)
    aligned = all(before in range(0, d * (k - 1) + 1, d) for before, d, k in reads)
    fixed = conv.padding != "same" or all(s == 1 or k == 1 for s, k in zip(conv.stride, conv.kernel, strict=True))
    lengths = (
        top + bottom - conv.dilation[0] * (conv.kernel[0] - 1),
        left + right - conv.dilation[1] * (conv.kernel[1] - 1),
    )
    if not fixed or not aligned or any(lengths):
        with pytest.raises(UsageError, match="shortcut that cannot fold"):
            add_shortcut(conv, shortcut)
        return
    merged = add_shortcut(conv, shortcut)
    check(merged, [conv], extra, to=lambda x: conv(x) + (x if shortcut is None else shortcut(x)))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("padding", ["same", None])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_input_itself_folds_into_centred_kernels(kernel, padding, groups):
    padding = padding or ((kernel - 1) // 2,) * 4
    conv = make(6, 6, (kernel, kernel), padding=padding, groups=groups)
    merged = add_shortcut(conv, None)
    assert merged.groups == groups
    check(merged, [conv], (4, 7), to=lambda x: conv(x) + x)


def test_same_paddings_that_agree_fold():
    conv, other = (make(4, 4, (k, k), (2, 2), padding="same", seed=k) for k in (5, 3))
    check(add_shortcut(conv, other), [conv], (6, 7), to=lambda x: conv(x) + other(x))


IDENTITY = "the input itself"
REFUSED = [
    (make(4, 4, (3, 3), (2, 2), padding=(1,) * 4), None, f"{IDENTITY}.*its stride is"),
    (make(4, 6, (3, 3), padding=(1,) * 4), None, f"{IDENTITY}.*4 to 4 channels"),
    (make(4, 4, (3, 3)), None, f"{IDENTITY}.*2 longer"),
    (make(4, 4, (2, 2), dilation=(2, 2), padding=(1,) * 4), None, f"{IDENTITY}.*between or beside"),
    (make(4, 4, (2, 2)), None, f"{IDENTITY}.*1 longer"),
    (make(4, 4, (3, 3), padding=(3, 0, 0, 2)), None, f"{IDENTITY}.*longer"),
    (make(4, 4, (1, 3), padding=(2, 0, 0, 0)), make(4, 4, (1, 5), padding=(2, 2, 0, 0)), "beside"),
    (make(4, 4, (1, 3), padding=(0, 2, 0, 0)), make(4, 4, (1, 5), padding=(2, 2, 0, 0)), "beside"),
    (make(4, 6, (3, 3), (2, 2), padding=(1,) * 4), make(4, 6, stride=(1, 2)), "its stride is"),
    (make(4, 6, (3, 3), padding=(1,) * 4), make(4, 4), "4 to 4 channels"),
    (make(4, 6, (3, 3), padding=(1,) * 4), make(2, 6), "2 to 6 channels"),
    (make(4, 6, (3, 3), (2, 2), padding="same"), make(4, 6, stride=(2, 2)), "depends on the size of the input"),
]


@pytest.mark.parametrize("conv, shortcut, reason", REFUSED)
def test_shortcuts_that_cannot_fold(conv, shortcut, reason):
    with pytest.raises(UsageError, match=f"shortcut that cannot fold: .*{reason}") as error:
        add_shortcut(conv, shortcut)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_inverted_residual_in_low_precision(dtype):
    """Batch norms, depthwise layer and shortcut become one 3 x 3 convolution, rounded once."""
    chain = [make(4, 24, seed=1), make(24, 24, (3, 3), padding=(1,) * 4, groups=24, seed=2), make(24, 4, seed=3)]
    scales = [(random(conv.channels[1], 7).abs(), random(conv.channels[1], 8)) for conv in chain]
    chain = [scale_after(conv, *scale) for conv, scale in zip(chain, scales, strict=True)]
    padded = pad_once(chain)
    x = random((2, 4, 9, 8), 0)
    for shortcut in (None, make(4, 4, seed=5)):
        merged = add_shortcut(merge_chain(padded), shortcut).to(dtype)
        assert (merged.kernel, merged.padding, merged.weight.dtype) == ((3, 3), (1,) * 4, dtype)
        expected = run(padded, x) + (x if shortcut is None else shortcut(x))
        error = (merged.to(torch.float64)(x) - expected).norm() / expected.norm()
        assert error < (1e-6 if dtype is torch.float32 else 1e-2)


def test_a_chain_is_rounded_once():
    """Each of four layers rounded to bfloat16 would lose several times as much."""
    chain = [make(8, 8, seed=seed).to(torch.bfloat16) for seed in range(4)]
    merged, exact = merge_chain(chain), merge_chain([conv.to(torch.float64) for conv in chain])
    assert torch.equal(merged.weight, exact.weight.to(torch.bfloat16)) and merged.weight.dtype is torch.bfloat16
