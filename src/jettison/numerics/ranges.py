"""Find the range of every group: the full range, or the clipped range with the least squared error."""

import torch

from jettison.encodings.grid import Grid

STEPS, NARROWEST = 64, 0.2  # ranges that are tried, and the narrowest as a share of the full one
AT_ONCE = 1 << 17  # weights searched at once, so that the temporaries stay in a core's cache


def find_range(
    groups: torch.Tensor, grid: Grid, clip: bool, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find scale and zero point of every group.

    groups: (..., width) float32.
    clip: search a narrower range; if False, use the full one.
    importance: broadcastable to groups, weights of the squared error (a column's mean squared input); None means all
    equal.
    Returns scale and zero point, each (...) float32; the scale is already rounded to grid.scale_dtype.

    With ``clip``, the range shrinks in STEPS steps down to NARROWEST of its width; every group keeps the scale and
    zero point with the least (weighted) squared rounding error. A symmetric grid has one level more below zero than
    above; a negative scale turns it round, and is tried too. At 2 bits that makes symmetric grids as good as
    asymmetric ones (whose zero point is nearly always one of these two), at no cost in bits.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    if not clip:
        return grid.scale_zero(low, high)
    rows = max(1, AT_ONCE // max(1, groups[0].numel()))
    parts = [_search(part, grid, importance) for part in groups.split(rows)]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])


def _search(groups: torch.Tensor, grid: Grid, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Search the clipped ranges: ``find_range`` with clip for as many groups as fit in the cache.

    Of few groups, several ranges are tried at once. The result is that of one try after the other.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    scale, zero = grid.scale_zero(low, high)
    least = torch.full_like(scale, torch.inf)
    shrinks = torch.linspace(1.0, NARROWEST, STEPS).to(groups.device).view(-1, *[1] * low.dim())
    scales, zeros = grid.scale_zero(low * shrinks, high * shrinks)  # (STEPS, ...)
    if grid.symmetric:  # also with the opposite sign
        scales, zeros = torch.stack([scales, -scales], 1).flatten(0, 1), zeros.repeat_interleave(2, 0)
    tries = max(1, AT_ONCE // max(1, groups.numel()))
    for tried_scale, tried_zero in zip(scales.split(tries), zeros.split(tries), strict=True):  # (tries, ...)
        wide_scale, wide_zero = tried_scale.unsqueeze(-1), tried_zero.unsqueeze(-1)
        codes = grid.encode(groups, wide_scale, wide_zero)
        error = grid.decode(codes, wide_scale, wide_zero).sub_(groups).square_()
        if importance is not None:
            error = error.mul_(importance)
        error = error.sum(-1).nan_to_num(torch.inf, torch.inf)  # (tries, ...)
        best = error.argmin(0, keepdim=True)  # of equal errors, the first
        error, tried_scale, tried_zero = (values.gather(0, best)[0] for values in (error, tried_scale, tried_zero))
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, tried_scale, scale), torch.where(better, tried_zero, zero)
    return scale, zero
