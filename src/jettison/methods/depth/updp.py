"""UPDP: choose blocks in a supernet, fade their activations out, merge what is left of them."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.graph.twin import Twin, remove_twin, set_fades
from jettison.numerics.evolution import Genome, evolve
from jettison.recipe.registry import depth_pruner
from jettison.training.depth import DepthTask, Pruned, SupernetLesson, check_blocks, fade_out, start_twins
from jettison.training.merged_latency import block_latencies, subnet_latency

ROUNDS = 3  # searches for a latency: each allows as much less as the subnet before missed


@depth_pruner("updp", paper="arXiv:2401.06426")
def updp(
    task: DepthTask,
    *,
    blocks: Annotated[int, Field(ge=1)] | None = None,
    latency: Annotated[float, Field(gt=0, lt=1)] | None = None,
    supernet_epochs: Annotated[float, Field(gt=0)] = 3.0,
    middle: Annotated[int, Field(ge=0)] = 1,
    population: Annotated[int, Field(ge=4)] = 50,
    generations: Annotated[int, Field(ge=1)] = 20,
    fitness: Literal["loss", "accuracy"] = "loss",
    epochs: Annotated[float, Field(gt=0)] = 10.0,
    fade: Annotated[float, Field(ge=0, le=1)] = 0.2,
    batch: Annotated[int, Field(ge=2)] = 128,
    supernet_rate: Annotated[float, Field(gt=0)] = 5e-4,
    rate: Annotated[float, Field(gt=0)] = 1e-3,
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5,
    kernel: Annotated[int, Field(ge=-1)] = -1,
) -> Pruned:
    """Prune depth progressively (UPDP): supernet, search, progressive training; the result merges exactly.

    blocks: how many blocks to prune.
    latency: instead, the latency to reach, as a share of the original's, measured on this machine.
    supernet_epochs, supernet_rate: passes over the images, and learning rate, of the supernet.
    middle: random subnets in each step of the supernet, beside the whole model and the smallest subnet.
    population, generations: of the evolutionary search; few possible subnets are all tried.
    fitness: what the search looks for on held-out images: the lowest loss, or the highest accuracy, which varies more.
    epochs, rate: of the progressive training.
    fade: the share of the progressive training in which blocks fade out.
    batch: images per step.
    distill: weight of the original's logits in the loss; the rest is the labels'.
    kernel: the largest kernel of a merged convolution; -1: that of its block; 0: no limit.

    Raises UsageError for more blocks than there are, and for a latency that no subnet reaches.
    Source: arXiv:2401.06426. Its tables and hyper-parameters were not at hand: these are our reconstruction;
    of two settings of ``fitness`` and ``fade`` the better one in benchmarks/vision/depth.py is the default.
    """
    if (blocks is None) == (latency is None):
        raise UsageError("depth method 'updp' needs one of blocks (such as 4) and latency (such as 0.7)")
    if blocks is not None:
        check_blocks(task, blocks, "blocks")
    twins = start_twins(task, kernel)
    gains = block_latencies(task, twins) if latency is not None else {}
    if latency is not None and (smallest := _latency((1,) * len(twins), gains)) > latency:
        raise UsageError(
            f"latency = {latency:g}: the smallest subnet, with all {len(twins)} blocks pruned, reaches {smallest:.2f} "
            "of the original's latency; give a larger share"
        )
    lesson = SupernetLesson(task, twins, middle)
    task.train("supernet", lesson, supernet_epochs, batch, supernet_rate)
    goal = latency
    for left in reversed(range(ROUNDS)):
        chosen = _search(task, twins, blocks, goal, gains, population, generations, fitness)
        if latency is None or (share := subnet_latency(task, twins, chosen)) <= latency:
            break
        goal = round(
            max(goal - (share - latency), smallest), 4
        )  # together the blocks save less than the sum of each alone
        then = "searching for less" if left else "going on with it"
        say(f"search: this subnet takes {share:.2f} of the original's latency, not {latency:g}: {then}")
    set_fades(twins, [0] * len(twins))
    for twin in twins:
        remove_twin(task.model, twin)
    return fade_out(
        task, chosen, kernel=kernel, epochs=epochs, batch=batch, rate=rate, fade=fade, distill=distill
    )  # fmt: skip


def _search(
    task: DepthTask, twins: list[Twin], blocks: int | None, latency: float | None, gains: dict[int, float],
    population: int, generations: int, sought: str,
) -> list[int]:  # fmt: skip
    """Return the numbers of the blocks with whose pruning the supernet has the best scores on held-out images.

    sought: ``accuracy`` or ``loss``.
    gains: number of a block -> the share of the original's latency that its pruning saves.
    """
    if done := task.journal.last(searched=True, goal=latency):
        return done["pruned"]
    judged = {entry["genome"]: entry for entry in task.journal.entries if "genome" in entry}

    def fitness(genome: Genome) -> float:
        name = "".join(map(str, genome))
        if name not in judged:
            set_fades(twins, genome)
            judged[name] = task.scores() | {"latency": _latency(genome, gains)}
            task.journal.add(genome=name, **judged[name])
        return judged[name]["accuracy"] if sought == "accuracy" else -judged[name]["loss"]

    def feasible(genome: Genome) -> bool:
        return sum(genome) == blocks if blocks is not None else _latency(genome, gains) <= latency

    def repair(genome: Genome, rng: torch.Generator) -> Genome:
        """Prune or restore random blocks until the genome is feasible, or there are none left."""
        genome = list(genome)
        for block in torch.randperm(len(genome), generator=rng).tolist():
            if feasible(tuple(genome)):
                break
            too_many = blocks is not None and sum(genome) > blocks
            if genome[block] == int(too_many):
                genome[block] = int(not too_many)
        return tuple(genome)

    best = evolve(
        len(twins), fitness, feasible, repair, population=population, generations=generations, seed=task.seed,
        note=lambda generation, best: say(f"search: generation {generation}, best {sought} {abs(best):.4g}"),
    )  # fmt: skip
    pruned = [block for block, bit in enumerate(best) if bit]
    accuracy = judged["".join(map(str, best))]["accuracy"]
    task.journal.add(searched=True, goal=latency, pruned=pruned, accuracy=accuracy, latency=_latency(best, gains))
    return pruned


def _latency(genome: Genome, gains: dict[int, float]) -> float | None:
    """Return the latency of a subnet as a share of the original's; None if the blocks were not timed."""
    return round(1 - sum(gain for block, gain in gains.items() if genome[block]), 4) if gains else None
