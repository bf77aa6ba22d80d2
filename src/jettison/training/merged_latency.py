"""How much latency the pruning of each block saves: each is merged alone, and the models are timed in turns."""

from copy import deepcopy

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
    models = {}
    for block in [None, *range(len(twins))]:
        model = deepcopy(task.model)
        copies = [model.get_submodule(twin.residual.path) for twin in twins]
        set_fades(copies, [1] * len(copies))
        task.logits(model.eval(), task.data.calibration[0][:1])  # every twin learns the size of its inputs
        set_fades(copies, [number == block for number in range(len(copies))])
        merge_twins(model, copies)
        models["original" if block is None else str(block)] = model
    times = task.measure(models)
    whole = times["original"]
    gains = {block: round(max(0.0, 1 - times[str(block)] / whole), 5) for block in range(len(twins))}
    task.journal.add(timed=True, milliseconds=round(whole, 4), gains=gains)
    return gains
