"""Processor time and memory of pruning one block in the shape of Qwen3-1.7B. ``study.py --block`` runs this file.

Weights and activations are random, the pattern is 2:4, and one matrix after the other is pruned on one thread. Other
programs may run meanwhile: the time is the process's own, which equals the time by the clock on a quiet machine.
"""

import json
import time
from functools import partial

import torch

from benchmarks.witness import RUNS, cell
from jettison.encodings.pattern import Pattern
from jettison.pipeline.trial import timed as watched
from jettison.recipe import registry
from jettison.statistics.stats import Stats

FOLDER = RUNS / "sds"
SHAPES = {"2048x2048": 2, "1024x2048": 2, "6144x2048": 2, "2048x6144": 1}  # outputs x inputs -> number in a block
BASES, SDS_BASE = ("magnitude", "wanda", "sparsegpt", "alps"), "sparsegpt"
STEPS = 200  # of each stage of SDS


def block_cost() -> dict:
    """Return the result of ``one_matrix`` for each shape."""
    return {shape: cell(FOLDER.name, f"block-{shape}", partial(one_matrix, shape)) for shape in SHAPES}


def known_blocks() -> dict:
    """Return the cells of ``block_cost`` that have been computed, by shape."""
    files = {shape: FOLDER / f"block-{shape}.json" for shape in SHAPES}
    return {shape: json.loads(file.read_text()) for shape, file in files.items() if file.exists()}


def one_matrix(shape: str) -> dict:
    """Return seconds and memory to prune a random matrix by random activations, by method.

    The seconds of one step of SDS come from runs of 1 and of 3 steps a stage: all steps take the same time.
    """
    rows, columns = map(int, shape.split("x"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    # Mixed columns give correlated activations.
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    stats = Stats.empty(columns)
    for _ in range(4):
        inputs = torch.randn(columns // 2, columns, generator=generator) @ mix
        stats.add(inputs, inputs)
    del mix, inputs
    costs = {base: timed(weight, stats, {"method": base}) for base in BASES}
    few, more = (
        timed(weight, stats, {"method": "sds", "base": SDS_BASE, "dense_steps": count, "second_steps": count})
        for count in (1, 3)
    )
    costs["step"] = {
        "seconds": (more["seconds"] - few["seconds"]) / 4,
        "memory": more["memory"],
    }  # 2 stages, 2 more steps in each
    torch.set_num_threads(threads)
    return costs


def timed(weight: torch.Tensor, stats: Stats, options: dict) -> dict[str, float]:
    """Prune a matrix by a method.

    Returns the seconds of processor time, and the peak of resident memory, with weight and statistics.
    """
    options = dict(options)
    method = registry.find("prune", options.pop("method"))
    start = time.process_time()
    with watched() as trial:
        method.function(weight, Pattern.parse("2:4"), stats, **method.check(options))
    return {"seconds": time.process_time() - start, "memory": trial.memory}


def block_table(shapes: dict[str, dict]) -> dict:
    """Return the table of a block's costs; empty until every shape has been measured."""
    if len(shapes) < len(SHAPES):
        return {}
    total = lambda name: sum(count * shapes[shape][name]["seconds"] for shape, count in SHAPES.items())
    memory = lambda name: f"{max(shapes[shape][name]['memory'] for shape in shapes) / 1e9:.2f} GB"
    rows = [[base, f"{total(base):.1f} s", memory(base)] for base in BASES]
    whole = 2 * total(SDS_BASE) + 2 * STEPS * total("step")
    steps = f"{whole:.0f} s, of which {total('step'):.2f} s each of {2 * STEPS} steps"
    rows.append([f"sds on {SDS_BASE}, {STEPS} + {STEPS} steps", steps, memory("step")])
    title = "A block of Qwen3-1.7B's shape at 2:4: its seven matrices on one thread, without the activations' passage"
    return {title: {"columns": ["", "time", "peak memory"], "rows": rows}}
