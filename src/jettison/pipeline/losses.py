"""Find the loss of each part of a model on each grid: looked up, or measured on the calibration text."""

from typing import Any

from jettison.domains.text.data import Text
from jettison.formats.dequantized import open_source
from jettison.graph.folder import ModelFolder
from jettison.recipe.registry import default_method
from jettison.statistics.sensitivity import (
    LENGTH,
    SAMPLES,
    Bench,
    Grids,
    Parts,
    known_sensitivity,
    sensitivity,
    unseen_windows,
)


def find_losses(source: ModelFolder, parts: Parts, grids: Grids, kind: str) -> tuple[dict[str, dict[Any, float]], str]:
    """Return the losses (part -> grid -> nats per token), and of what kind they are.

    kind: ``gradients`` or ``measured``; ``auto`` takes what an earlier run stored, measured losses before gradients.
    If nothing complete is stored, no losses are returned and the kind is ``prior``.
    """
    if kind == "auto":
        return known_sensitivity(source, parts, grids, Text())
    return sensitivity(open_source(source), parts, grids, Text(), kind=kind), kind


def unseen_bench(source: ModelFolder) -> Bench:
    """Return a bench that measures the KL divergence of whole plans, on text that ``find_losses`` has not seen."""
    calibration = Text().windows(source, source.window(LENGTH), SAMPLES)
    return Bench(
        open_source(source), unseen_windows(source, Text()), default_method("quantize"), statistics=calibration
    )
