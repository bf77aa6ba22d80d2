"""Textures of the world: sums of band-limited noise, anchored in the world and sampled at any point.

- One tile of noise serves all bands. A band reads it at its own scale and angle, so repetitions are not visible.
- A band fades out where its waves are finer than two pixels, so that images have no aliasing.
"""

from functools import lru_cache

import numpy as np

SIDE = 256  # samples of a side of the tile; a power of two
WAVE = 4.0  # samples, the mean wavelength in the tile
FULL, NONE = 4.0, 1.5  # pixels of a wavelength from which a band is drawn fully, and up to which not at all
TURN = 2.4  # radians between the axes of two bands


@lru_cache(maxsize=1)
def tile() -> np.ndarray:
    """Return noise (SIDE, SIDE) float32 that repeats at its borders, of mean 0 and deviation 1, an octave wide."""
    rng = np.random.default_rng(20240404)
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    octaves = np.log2(np.maximum(frequency, 1e-9) * WAVE)
    values = np.fft.irfft2(spectrum * np.exp(-2 * octaves**2), (SIDE, SIDE))
    return (values / values.std()).astype(np.float32)


def sample(x: np.ndarray, y: np.ndarray, wavelength: float, band: int = 0) -> np.ndarray:
    """Return noise of one band at points, (n,) float32, linear between the samples of the tile.

    x, y: (n,) metres. wavelength: metres. band: bands of different numbers differ.
    """
    scale = WAVE / wavelength
    c, s = np.cos(TURN * band) * scale, np.sin(TURN * band) * scale
    u, v = c * x + s * y + 37.3 * band, c * y - s * x + 91.7 * band
    left, top = np.floor(u), np.floor(v)
    a, b = u - left, v - top
    i, j = top.astype(np.int32) & (SIDE - 1), left.astype(np.int32) & (SIDE - 1)
    below, right = (i + 1) & (SIDE - 1), (j + 1) & (SIDE - 1)
    values = tile().ravel()
    upper = values[i * SIDE + j] * (1 - a) + values[i * SIDE + right] * a
    lower = values[below * SIDE + j] * (1 - a) + values[below * SIDE + right] * a
    return upper * (1 - b) + lower * b


def weight(wavelength: float, footprint: np.ndarray) -> np.ndarray:
    """Return how much of a band is drawn, 0 to 1. footprint: (n,) metres that a pixel covers."""
    return np.clip((wavelength / np.maximum(footprint, 1e-6) - NONE) / (FULL - NONE), 0, 1)


def texture(
    x: np.ndarray, y: np.ndarray, footprint: np.ndarray, bands: tuple[tuple[float, float], ...], first: int = 0
) -> np.ndarray:
    """Return the sum of several bands at points, (n,) float32.

    bands: (wavelength in metres, amplitude) of each. first: number of the first band.
    footprint: (n,) metres that a pixel covers.
    """
    total = np.zeros(len(x), np.float32)
    for number, (wavelength, amplitude) in enumerate(bands, first):
        share = weight(wavelength, footprint)
        drawn = np.flatnonzero(share > 0)
        if len(drawn) == len(x):
            total += amplitude * share * sample(x, y, wavelength, number)
        elif len(drawn):
            total[drawn] += amplitude * share[drawn] * sample(x[drawn], y[drawn], wavelength, number)
    return total
