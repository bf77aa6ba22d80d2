"""How much latency pruning saves: copies with merged blocks are timed in turns with the whole model."""

from collections.abc import Collection
from copy import deepcopy

from torch import nn

from jettison.core.progress import waiting
from jettison.graph.merge import merge_twins
from jettison.graph.twin import Twin, set_fades
from jettison.training.depth import DepthTask


@waiting("timing the blocks")
def block_latencies(task: DepthTask, twins: list[Twin]) -> dict[int, float]:
    """Return the number of a block -> the share of the model's latency that its pruning saves; 0 if it saves none.

    The model must have its twins installed. The measurement is kept in the journal of the task.
    """
    if done := task.journal.last(timed=True):
        return {int(block): gain for block, gain in done["gains"].items()}
    models = {"original": _merged(task, twins, ())}
    models |= {str(block): _merged(task, twins, (block,)) for block in range(len(twins))}
    times = task.measure(models)
    whole = times["original"]
    gains = {block: round(max(0.0, 1 - times[str(block)] / whole), 5) for block in range(len(twins))}
    task.journal.add(timed=True, milliseconds=round(whole, 4), gains=gains)
    return gains


@waiting("timing the subnet")
def subnet_latency(task: DepthTask, twins: list[Twin], blocks: list[int]) -> float:
    """Return the latency of a model with some of its blocks merged, as a share of the model's own.

    The model must have its twins installed. The measurement is kept in the journal of the task.
    """
    if done := task.journal.last(subnet=blocks):
        return done["share"]
    times = task.measure({"original": _merged(task, twins, ()), "pruned": _merged(task, twins, blocks)})
    share = round(times["pruned"] / times["original"], 4)
    task.journal.add(subnet=blocks, share=share)
    return share


def _merged(task: DepthTask, twins: list[Twin], blocks: Collection[int]) -> nn.Module:
    """Return a copy of the model with the blocks of these numbers merged, and the others as they were."""
    model = deepcopy(task.model)
    copies = [model.get_submodule(twin.residual.path) for twin in twins]
    set_fades(copies, [1] * len(copies))
    task.logits(model.eval(), task.data.calibration[0][:1])  # every twin learns the size of its inputs
    set_fades(copies, [number in blocks for number in range(len(copies))])
    merge_twins(model, copies)
    return model
