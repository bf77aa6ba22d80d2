"""One-shot pruning. One file per method in ``methods/``; ``masks`` chooses what goes, ``allocate`` how much where."""

from jettison.prune.allocate import allocate
from jettison.prune.methods import alps, magnitude, sds, sparsegpt, wanda
from jettison.prune.run import Task, run_task

__all__ = ["Task", "allocate", "alps", "magnitude", "run_task", "sds", "sparsegpt", "wanda"]
