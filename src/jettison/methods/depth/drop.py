"""Drop whole blocks, those that the model misses least, then finetune."""

from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.graph.blocks import Passed
from jettison.recipe.registry import depth_pruner
from jettison.training.depth import DepthTask, Lesson, Pruned


@depth_pruner("drop", paper="arXiv:2403.03853")
def drop(
    task: DepthTask,
    *,
    blocks: Annotated[int, Field(ge=1)] = 1,
    epochs: Annotated[float, Field(gt=0)] = 10.0,
    batch: Annotated[int, Field(ge=2)] = 128,
    rate: Annotated[float, Field(gt=0)] = 1e-3,
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> Pruned:
    """Drop whole blocks greedily by validation accuracy, then finetune. Nothing is merged.

    blocks: how many blocks to drop. Only a block whose shortcut is its input can be dropped.
    epochs, batch, rate, distill: see ``updp``.

    Raises UsageError if fewer blocks can be dropped.
    Source: arXiv:2403.03853 drops blocks by their influence; the greedy choice by accuracy is ours.
    """
    able = [number for number, residual in enumerate(task.residuals) if residual.droppable]
    if blocks > len(able):
        raise UsageError(
            f"blocks = {blocks}: {len(able)} blocks of the model have their input as a shortcut and can be dropped"
        )
    dropped = _choose(task, blocks, able)
    task.load_original()  # the choice changed statistics of batch normalizations
    with _without(task, dropped):
        task.train("finetune", Lesson(task, distill), epochs, batch, rate)
    return Pruned([], dropped, dropped=True)


def _choose(task: DepthTask, blocks: int, able: list[int]) -> list[int]:
    """Return the numbers of the blocks to drop. Each is the one without which accuracy is highest."""
    dropped: list[int] = []
    for _ in range(blocks):
        scores = {}
        for number in able:
            if number in dropped:
                continue
            tried = sorted([*dropped, number])
            known = task.journal.last(tried=tried)
            if known is None:
                with _without(task, tried):
                    task.journal.add(tried=tried, accuracy=task.accuracy())
                known = task.journal.last(tried=tried)
            scores[number] = known["accuracy"]
        dropped.append(max(scores, key=scores.get))
        say(f"dropped block {dropped[-1]}: accuracy {scores[dropped[-1]]:.2%} before finetuning")
    return sorted(dropped)


@contextmanager
def _without(task: DepthTask, dropped: list[int]):
    """Let a model pass by some of its blocks."""
    paths = [task.residuals[number].block for number in dropped]
    originals = [task.model.get_submodule(path) for path in paths]
    for path in paths:
        task.model.set_submodule(path, Passed())
    try:
        yield
    finally:
        for path, original in zip(paths, originals, strict=True):
            task.model.set_submodule(path, original)
