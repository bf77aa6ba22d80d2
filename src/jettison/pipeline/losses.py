"""What each part of a model loses on each grid: looked up, or measured on the calibration text."""

from typing import Any

from jettison.domains.text.data import Text
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
    """Part -> grid -> nats per token, and the kind. kind: ``gradients`` or ``measured``; ``auto`` takes what was found
    before, which may be nothing: then the kind is ``prior``."""
    if kind == "auto":
        return known_sensitivity(source, parts, grids, Text())
    return sensitivity(source, parts, grids, Text(), kind=kind), kind


def unseen_bench(source: ModelFolder) -> Bench:
    """Measures the KL divergence of whole plans, on text that ``find_losses`` has not seen."""
    seen = Text().windows(source, source.window(LENGTH), SAMPLES)
    return Bench(source, unseen_windows(source, Text()), default_method("quantize"), statistics=seen)
