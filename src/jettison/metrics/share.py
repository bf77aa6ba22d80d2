"""The share of a lost score that a recovery regained, with standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SURE = 2.0  # a loss must exceed this many of its standard errors for the share to be meaningful


@dataclass(frozen=True)
class Share:
    """The loss of quantization, and the share of it that was recovered.

    lost: mean of original − quantized over the items, in units of the score.
    lost_error: standard error of ``lost``, from paired differences.
    recovered: mean of recovered − quantized, divided by ``lost``; NaN if nothing was lost.
    recovered_error: standard error of ``recovered``, from paired differences.
    """

    lost: float
    lost_error: float
    recovered: float
    recovered_error: float

    @property
    def counts(self) -> bool:
        """Whether the loss exceeds two of its standard errors."""
        return self.lost > SURE * self.lost_error


def recovered_share(original: Sequence[float], quantized: Sequence[float], recovered: Sequence[float]) -> Share:
    """Compute which share of the loss of quantization was recovered.

    original, quantized, recovered: scores of the same items in the same order by three models; higher is better
        (accuracies, or negated losses). At least two items.
    The error of the share is that of a ratio of paired means, to first order (delta method). Raises ValueError for
    scores of different lengths and for fewer than two items.
    """
    before, low, high = (np.asarray(scores, dtype=np.float64) for scores in (original, quantized, recovered))
    if not before.shape == low.shape == high.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(
            "the scores of the same items are needed, in three sequences of at least two: their shapes are "
            f"{before.shape}, {low.shape}, {high.shape}"
        )
    lost, regained, root = before - low, high - low, math.sqrt(len(before))
    mean_lost = float(lost.mean())
    share = float(regained.mean()) / mean_lost if mean_lost else math.nan
    error = float((regained - share * lost).std(ddof=1)) / root / abs(mean_lost) if mean_lost else math.nan
    return Share(mean_lost, float(lost.std(ddof=1)) / root, share, error)
