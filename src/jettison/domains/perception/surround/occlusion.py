"""Masks of what a camera sees of its own car: it stays where it is while the car moves.

SurroundDepth (arXiv:2204.03636) draws such masks by hand for DDAD. Ours follow from the images of a drive: the part of
every column, from the lowest row up, whose pixels hardly change between frames in which the car has moved.
"""

from collections.abc import Sequence

import numpy as np

STILL = 5.0  # mean absolute difference of frames, of 255, below which a pixel stands still
FEWEST = 4  # frames; with fewer nothing is known
LOWEST = 0.04  # share of the height: lower strips are noise


def usable_pixels(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return which pixels show the surroundings and not the own car, (height, width) bool.

    images: (height, width, 3) uint8 of one camera, from frames between which the car moved.
    """
    height, width = images[0].shape[:2]
    if len(images) < FEWEST:
        return np.ones((height, width), bool)
    grays = np.stack([image.astype(np.float32).mean(2) for image in images])
    change = np.abs(np.diff(grays, axis=0)).mean(0)
    still = np.logical_and.accumulate((change < STILL)[::-1], axis=0)[::-1]  # from the lowest row up
    tall = still.sum(0) >= max(2, LOWEST * height)
    return ~(still & tall)
