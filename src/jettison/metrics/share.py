"""How much of what was lost has come back, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SURE = 2.0  # standard errors of the loss from which on a recovery means something


@dataclass(frozen=True)
class Share:
    """lost: original − quantized, mean over items. recovered: (recovered − quantized) / lost; both with the standard
    error of their paired estimate. counts: whether the loss exceeds two of its standard errors."""

    lost: float
    lost_error: float
    recovered: float
    recovered_error: float

    @property
    def counts(self) -> bool:
        return self.lost > SURE * self.lost_error


def recovered_share(original: Sequence[float], quantized: Sequence[float], recovered: Sequence[float]) -> Share:
    """Scores of the same items in the same order by three models, higher is better: accuracies, or negated losses.

    The error of the share is that of a ratio of paired means, to first order (delta method). At least two items.
    """
    before, low, high = (np.asarray(scores, dtype=np.float64) for scores in (original, quantized, recovered))
    if not before.shape == low.shape == high.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(
            f"scores of the same items are needed, two at least: {before.shape}, {low.shape}, {high.shape}"
        )
    lost, back, root = before - low, high - low, math.sqrt(len(before))
    mean = float(lost.mean())
    share = float(back.mean()) / mean if mean else math.nan
    error = float((back - share * lost).std(ddof=1)) / root / abs(mean) if mean else math.nan
    return Share(mean, float(lost.std(ddof=1)) / root, share, error)
