"""Drop whole blocks, those that the model misses least, then finetune."""

from typing import Annotated

from pydantic import Field
from torch import nn

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
    _pass_by(task, dropped)
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
                originals = _pass_by(task, tried)
                task.journal.add(tried=tried, accuracy=task.accuracy())
                for path, original in originals.items():
                    task.model.set_submodule(path, original)
                known = task.journal.last(tried=tried)
            scores[number] = known["accuracy"]
        dropped.append(max(scores, key=scores.get))
        say(f"dropped block {dropped[-1]}: accuracy {scores[dropped[-1]]:.2%} before finetuning")
    return sorted(dropped)


def _pass_by(task: DepthTask, dropped: list[int]) -> dict[str, nn.Module]:
    """Let the model pass by some of its blocks. Returns path -> the block that was there."""
    originals = {}
    for number in dropped:
        path = task.residuals[number].block
        originals[path] = task.model.get_submodule(path)
        task.model.set_submodule(path, Passed())
    return originals
