"""How good, how close to the original, how small."""

from jettison.evaluate.quality import evaluate
from jettison.evaluate.size import measure_size

__all__ = ["evaluate", "measure_size"]
