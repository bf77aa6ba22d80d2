"""Encodings of places and angles as numbers that attention can compare."""

import math

import torch

PERIOD = 10_000.0  # ratio of the longest to the shortest wave


def sine_encoding(places: torch.Tensor, width: int, scale: float = 2 * math.pi) -> torch.Tensor:
    """Encode places by sines and cosines of many periods, as DETR does.

    places: (..., n) numbers, such as x and y as shares of the image's sides.
    width: of the result, a multiple of 2·n: every number has an equal part of it, first its sines, then its cosines.
    scale: by which places are multiplied; the shortest wave has the length 2π / scale.
    Returns (..., width). Raises ValueError for another width.
    Source: arXiv:2005.12872, appendix A.4.
    """
    count = places.shape[-1]
    if width % (2 * count):
        raise ValueError(f"width {width}: a multiple of {2 * count} is needed for {count} numbers")
    each = width // (2 * count)
    steps = torch.arange(each, dtype=places.dtype, device=places.device)
    angles = (scale * places)[..., None] / PERIOD ** (steps / each)  # (..., n, each)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def rotary_encoding(x: torch.Tensor, places: torch.Tensor, base: float = PERIOD) -> torch.Tensor:
    """Turn pairs of channels by angles that grow with the place: products of two results depend on the distance.

    x: (..., tokens, width), an even width: queries or keys. Channel i is paired with channel i + width / 2.
    places: (tokens,) or (..., tokens), in steps of a token, or radians of a circle with ``base`` 1.
    base: ratio of the slowest to the fastest turning; with 1 all pairs turn by the place itself.
    Returns a tensor like x. Source: arXiv:2104.09864, section 3.2.
    """
    half = x.shape[-1] // 2
    steps = torch.arange(half, dtype=x.dtype, device=x.device)
    angles = places[..., None] / base ** (steps / half)  # (..., tokens, half)
    sine, cosine = angles.sin(), angles.cos()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
