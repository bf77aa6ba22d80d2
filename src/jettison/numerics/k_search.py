"""Fit weights to the K types of GGUF: scales and minima of groups are small multiples of two float16 numbers per block.

The search minimizes the squared error, weighted by the mean square of each column's input where it is known. Every
candidate is judged by the weights that a decoder will compute, and a block changes only if its error falls. So the
result is never worse than the plain packing (``plain``), with which the search begins:

1. Every group is fitted alone: several ranges, each followed by least squares for scale and minimum.
2. Every block tries several d and dmin for these scales and minima.
3. Coordinates in turn: every group tries neighbouring scales and minima; least squares give d and dmin anew.

The search is our own. Its first step was informed by make_qkx2_quants of ggml-quants.c.
"""

from dataclasses import dataclass, replace

import torch

from jettison.encodings.gguf_k_blocks import BLOCK, K_TYPES, KBlocks, KType

AT_ONCE = 1 << 17  # weights searched at once, so that the temporaries stay in a core's cache
STEPS = 14  # ranges tried for a group, beside the full one
ROUNDS = 3  # of step 3
LEAST = 1e-6  # of the mean importance: columns without inputs are rounded, too
TINY = 1e-30  # a smaller divisor counts as zero
# Highest scale of a type -> scales that the largest one of a block may become. A power of two keeps one scale exact.
MULTIPLES = {15: (15, 14, 13, 12, 11, 10, 9, 8), 63: (63, 61, 59, 56, 52, 48, 32)}
MULTIPLES |= {31: (-32, -31, -30, -29, -28, -26, -24, 31), 127: (-128, -126, -122, -112, -64)}
Fit = tuple[torch.Tensor, torch.Tensor | None]  # scale, and minimum in types that have it; (blocks, groups) float32


@dataclass(frozen=True)
class State:
    """What a decoder reads beside the codes, float32: d and dmin (blocks, 1), scales and minima (blocks, groups)."""

    d: torch.Tensor
    scales: torch.Tensor
    dmin: torch.Tensor | None = None
    minima: torch.Tensor | None = None


def fit_k(
    weight: torch.Tensor, name: str, importance: torch.Tensor | None = None, start: Fit | None = None
) -> torch.Tensor:
    """Return the bytes of a weight in a K type, uint8 (rows, bytes).

    weight: (rows, columns) float32; 256 divides the columns.
    name: of the type, such as Q4_K.
    importance: (columns,), weights of the squared error, such as the mean square of each input; None: all equal.
    start: a fit to try beside those found here, for weights that lie on a grid already; values are scale · code −
        minimum. (rows, groups of the type) each.
    """
    kind = K_TYPES[name]
    rows, columns = weight.shape
    if importance is not None:
        importance = importance.float().clamp(min=LEAST * float(importance.float().mean()) + TINY).reshape(-1, BLOCK)
    height, packed = max(1, AT_ONCE // columns), []
    for first in range(0, rows, height):
        part = slice(first, first + height)
        x = weight[part].float().reshape(-1, BLOCK // kind.width, kind.width)  # (blocks, groups, width)
        w = torch.ones(()).expand_as(x)
        if importance is not None:
            w = importance.repeat(len(x) * BLOCK // columns, 1).view_as(x)
        in_blocks = lambda values, part=part: None if values is None else values[part].reshape(-1, BLOCK // kind.width)
        starts = [] if start is None else [(in_blocks(start[0]), in_blocks(start[1]))]
        blocks = _blocks(x, _search(x, w, kind, starts), name)
        packed.append(blocks.pack().reshape(-1, columns // BLOCK * kind.size))
    return torch.cat(packed)


def plain(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Return the bytes of a weight whose groups take their full range: what ``fit_k`` begins with, for comparison."""
    kind = K_TYPES[name]
    x = weight.float().reshape(-1, BLOCK // kind.width, kind.width)
    state = _state(_full_range(x, kind), kind, kind.highest if kind.minimum else kind.lowest)
    return _blocks(x, state, name).pack().reshape(len(weight), -1)


def _search(x: torch.Tensor, w: torch.Tensor, kind: KType, starts: list[Fit]) -> State:
    """Return the best state of blocks x (blocks, groups, width) with weights w of their errors."""
    full = _full_range(x, kind)
    best = _state(full, kind, kind.highest if kind.minimum else kind.lowest)
    error = _errors(x, w, best, kind).sum(1)  # (blocks,)
    for fit in (_fit_groups(x, w, kind, full), full, *starts):
        for multiple in MULTIPLES[kind.highest]:
            best, error = _better(best, error, _state(fit, kind, multiple), x, w, kind)
        if kind.minimum:
            for multiple in MULTIPLES[kind.highest]:
                dmin = _half(fit[1].amax(1, keepdim=True) / multiple)
                tried = replace(best, dmin=dmin, minima=_multiples(fit[1], dmin, kind))
                best, error = _better(best, error, tried, x, w, kind)
    for _ in range(ROUNDS):
        best, error = _better(best, error, _neighbours(x, w, best, kind), x, w, kind)
        best, error = _better(best, error, _least_squares(x, w, best, kind), x, w, kind)
    return best


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.half().float()


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Return above / below, 0 where below is 0."""
    return torch.where(below.abs() > TINY, above / torch.where(below.abs() > TINY, below, 1.0), 0.0)


def _multiples(values: torch.Tensor, unit: torch.Tensor, kind: KType) -> torch.Tensor:
    return _ratio(values, unit).round_().clamp_(kind.lowest, kind.highest)


def _state(fit: Fit, kind: KType, multiple: int) -> State:
    """Return the state that rounds a fit, so that the largest scale and minimum of a block become ``multiple``."""
    scale, minimum = fit
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    d = _half(largest / multiple)
    if minimum is None:
        return State(d, _multiples(scale, d, kind))
    dmin = _half(minimum.amax(1, keepdim=True) / multiple)
    return State(d, _multiples(scale, d, kind), dmin, _multiples(minimum, dmin, kind))


def _codes(x: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, kind: KType) -> torch.Tensor:
    """Return the nearest codes of groups, less the middle, float32. scale, minimum: (blocks, groups, 1)."""
    shifted = x if minimum is None else x + minimum
    inverse = _ratio(torch.ones_like(scale), scale)
    return (shifted * inverse).round_().clamp_(-kind.middle, 2**kind.bits - 1 - kind.middle)


def _group_errors(
    x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, kind: KType
) -> torch.Tensor:
    """Return the weighted squared error of every group (blocks, groups). scale, minimum: (blocks, groups)."""
    scale, minimum = scale.unsqueeze(-1), None if minimum is None else minimum.unsqueeze(-1)
    values = _codes(x, scale, minimum, kind).mul_(scale)
    values = values if minimum is None else values.sub_(minimum)
    return values.sub_(x).square_().mul_(w).sum(-1)


def _errors(x: torch.Tensor, w: torch.Tensor, state: State, kind: KType) -> torch.Tensor:
    minimum = None if state.minima is None else state.dmin * state.minima
    return _group_errors(x, w, state.d * state.scales, minimum, kind)


def _better(
    best: State, error: torch.Tensor, tried: State, x: torch.Tensor, w: torch.Tensor, kind: KType
) -> tuple[State, torch.Tensor]:
    """Return, for every block, the state with the smaller error, and this error."""
    new = _errors(x, w, tried, kind).sum(1)
    wins = new < error  # not where it is NaN
    choose = lambda one, other: None if one is None else torch.where(wins.unsqueeze(1), one, other)
    state = State(choose(tried.d, best.d), choose(tried.scales, best.scales),
                  choose(tried.dmin, best.dmin), choose(tried.minima, best.minima))  # fmt: skip
    return state, torch.where(wins, new, error)


def _full_range(x: torch.Tensor, kind: KType) -> Fit:
    """Return scale and minimum of groups that reach from their least weight, or 0, to their greatest."""
    if not kind.minimum:
        extreme = x.gather(2, x.abs().argmax(2, keepdim=True)).squeeze(2)
        return extreme / -kind.middle, None
    low = x.amin(2).clamp_(max=0.0)
    return (x.amax(2) - low) / (2**kind.bits - 1), -low


def _fit_groups(x: torch.Tensor, w: torch.Tensor, kind: KType, full: Fit) -> Fit:
    """Return the best scale and minimum of every group alone, as if they were stored exactly."""
    scale, minimum = full
    error = _group_errors(x, w, scale, minimum, kind)
    most = 2**kind.bits - 1
    for step in range(STEPS):
        if kind.minimum:  # codes of a range between 1.0 codes wider and 0.8 codes narrower than the full one
            share = most / (most - 1.0 + 1.8 * step / (STEPS - 1))
            first = full[0] * share
        else:  # the extreme weight becomes code 0 or, with the other sign, the last one; or lies beyond
            share = 0.8 + 0.4 * (step // 2) / (STEPS // 2 - 1)
            first = full[0] * share * (-1 if step % 2 else 1)
        wide_minimum = None if minimum is None else full[1].unsqueeze(-1)
        codes = _codes(x, first.unsqueeze(-1), wide_minimum, kind)
        tried = _solve(x, w, codes, kind)
        new = _group_errors(x, w, *tried, kind)
        wins = new < error
        error, scale = torch.where(wins, new, error), torch.where(wins, tried[0], scale)
        minimum = None if minimum is None else torch.where(wins, tried[1], minimum)
    return scale, minimum


def _solve(x: torch.Tensor, w: torch.Tensor, codes: torch.Tensor, kind: KType) -> Fit:
    """Return scale and minimum of groups with the least error for given codes. Neither is negative in types with
    minima."""
    weighted = w * codes
    squares, products = (weighted * codes).sum(2), (weighted * x).sum(2)
    if not kind.minimum:
        return _ratio(products, squares), None
    total, sum_codes, sum_x = w.sum(2), weighted.sum(2), (w * x).sum(2)
    determinant = total * squares - sum_codes.square()
    flat = determinant <= 1e-6 * total * squares  # all codes are equal
    scale = _ratio(total * products - sum_x * sum_codes, torch.where(flat, 0.0, determinant))
    minimum = _ratio(scale * sum_codes - sum_x, total)
    outside = (minimum < 0) | flat
    scale = torch.where(outside, _ratio(products, squares), scale).clamp_(min=0.0)
    return scale, torch.where(outside, 0.0, minimum)


def _neighbours(x: torch.Tensor, w: torch.Tensor, state: State, kind: KType) -> State:
    """Return the state in which every group takes the best of its own and neighbouring scales and minima."""
    scales, minima = state.scales, state.minima
    error = _errors(x, w, state, kind)
    for more in (-1, 0, 1):
        for higher in (-1, 0, 1) if kind.minimum else (0,):
            if more == higher == 0:
                continue
            tried = (state.scales + more).clamp_(kind.lowest, kind.highest)
            lower = None if minima is None else (state.minima + higher).clamp_(kind.lowest, kind.highest)
            new = _errors(x, w, replace(state, scales=tried, minima=lower), kind)
            wins = new < error
            error, scales = torch.where(wins, new, error), torch.where(wins, tried, scales)
            minima = None if minima is None else torch.where(wins, lower, minima)
    return replace(state, scales=scales, minima=minima)


def _least_squares(x: torch.Tensor, w: torch.Tensor, state: State, kind: KType) -> State:
    """Return the state with the d and dmin that have the least error for the codes of a state, rounded to float16."""
    minimum = None if state.minima is None else (state.dmin * state.minima).unsqueeze(-1)
    codes = _codes(x, (state.d * state.scales).unsqueeze(-1), minimum, kind)
    total = lambda values: values.sum((1, 2)).unsqueeze(1)  # (blocks, 1)
    up = codes * state.scales.unsqueeze(-1)  # of d
    weighted = w * up
    squares, products = total(weighted * up), total(weighted * x)
    if state.minima is None:
        return replace(state, d=_half(_ratio(products, squares)))
    down = state.minima.unsqueeze(-1).expand_as(x)  # of −dmin
    mixed, down_squares, down_products = total(weighted * down), total(w * down * down), total(w * down * x)
    determinant = squares * down_squares - mixed.square()
    flat = determinant <= 1e-6 * squares * down_squares
    determinant = torch.where(flat, 0.0, determinant)
    d = _ratio(products * down_squares - mixed * down_products, determinant)
    dmin = _ratio(mixed * products - squares * down_products, determinant)
    return replace(state, d=_half(torch.where(flat, state.d, d)), dmin=_half(torch.where(flat, state.dmin, dmin)))


def _blocks(x: torch.Tensor, state: State, name: str) -> KBlocks:
    kind = K_TYPES[name]
    minimum = None if state.minima is None else (state.dmin * state.minima).unsqueeze(-1)
    codes = _codes(x, (state.d * state.scales).unsqueeze(-1), minimum, kind) + kind.middle
    whole = lambda values: None if values is None else values.to(torch.int16)
    half = lambda values: None if values is None else values.squeeze(1).half()
    return KBlocks(
        name,
        codes.flatten(1).to(torch.uint8),
        whole(state.scales),
        whole(state.minima),
        half(state.d),
        half(state.dmin),
    )
