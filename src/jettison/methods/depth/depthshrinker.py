"""Gates in the manner of DepthShrinker: learn which blocks to prune, remove their activations at once, finetune."""

from typing import Annotated

from pydantic import Field

from jettison.graph.twin import remove_twin, set_fades
from jettison.recipe.registry import depth_pruner
from jettison.training.depth import DepthTask, GateLesson, Pruned, check_blocks, fade_out, start_twins


@depth_pruner("depthshrinker", paper="arXiv:2206.00843")
def depthshrinker(
    task: DepthTask,
    *,
    blocks: Annotated[int, Field(ge=1)] = 1,
    gate_epochs: Annotated[float, Field(gt=0)] = 3.0,
    gate_rate: Annotated[float, Field(gt=0)] = 5e-4,
    epochs: Annotated[float, Field(gt=0)] = 10.0,
    batch: Annotated[int, Field(ge=2)] = 128,
    rate: Annotated[float, Field(gt=0)] = 1e-3,
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5,
    kernel: Annotated[int, Field(ge=-1)] = -1,
) -> Pruned:
    """Learn a gate for each block by a straight-through estimator, prune the lowest at once, then finetune.

    blocks: how many blocks to prune.
    gate_epochs, gate_rate: passes over the images, and learning rate, of the gates and weights together.
    epochs, batch, rate, distill, kernel: see ``updp``.

    The finetuning starts from the original's weights, as that of ``updp`` does.
    Raises UsageError for more blocks than there are.
    Source: arXiv:2206.00843; its masks stand on activations, ours on blocks: a reconstruction in its manner.
    """
    check_blocks(task, blocks, "blocks")
    twins = start_twins(task, kernel)
    lesson = GateLesson(task, twins, blocks)
    task.train("gates", lesson, gate_epochs, batch, gate_rate, extra={"gates": lesson.gates})
    task.journal.add(gates=[round(gate, 5) for gate in lesson.gates.tolist()], pruned=lesson.pruned)
    set_fades(twins, [0] * len(twins))
    for twin in twins:
        remove_twin(task.model, twin)
    return fade_out(
        task, lesson.pruned, kernel=kernel, epochs=epochs, batch=batch, rate=rate, fade=0.0, distill=distill
    )  # fmt: skip
