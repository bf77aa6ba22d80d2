"""How good, how close to the original, how small."""

from jettison.evaluate.generation import measure_generation, sample_prompts
from jettison.evaluate.quality import evaluate
from jettison.evaluate.share import Share, recovered_share
from jettison.evaluate.size import measure_size

__all__ = ["Share", "evaluate", "measure_generation", "measure_size", "recovered_share", "sample_prompts"]
