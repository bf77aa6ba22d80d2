"""How good, how close to the original, how small."""

from jettison.evaluate.generation import measure_generation, sample_prompts
from jettison.evaluate.quality import evaluate
from jettison.evaluate.share import Share, recovered_share
from jettison.evaluate.size import measure_size
from jettison.evaluate.tasks import compare_tasks, evaluate_tasks

__all__ = [
    "Share",
    "compare_tasks",
    "evaluate",
    "evaluate_tasks",
    "measure_generation",
    "measure_size",
    "recovered_share",
    "sample_prompts",
]
