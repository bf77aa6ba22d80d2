"""How long ``fit`` will take on this machine, roughly and at once: counted operations, and a moment of timing them.

``forecast`` tries parts of the run and knows better, but takes about as long as a block.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from jettison.core.progress import duration
from jettison.graph.dense import compute_device, stored_dtype
from jettison.graph.folder import ModelFolder
from jettison.pipeline.evaluation import TOKENS
from jettison.pipeline.generation import PROMPTS
from jettison.pipeline.generation import TOKENS as WRITTEN
from jettison.pipeline.jobs import assign
from jettison.pipeline.trial import WINDOW, WRITTEN_AT_ONCE
from jettison.recipe.recipe import Recipe, load_recipe

HOUR = 3600.0
FEWEST = {"recover.samples": 256, "calibration.samples": 32}
TOKENS_AT_ONCE, MOST = 256, 4096  # of the product that is timed, and its rows and columns at most
LOOK = 0.1  # seconds of timing each kind of work
# Counted by hand; with them the runs in benchmarks/results/proof.json come out within a factor of about 1.5.
PASSES = 400  # over a weight, to search the ranges of its groups
TRAINING = 10  # operations per weight and token: both models forward, the student back
CALLS, COLUMN_CALLS = 200, 40  # of PyTorch, for a block of a model that writes a token, and for a column of GPTQ
TRAINING_CALLS = 1000  # for a block and a step


class Estimate:
    """``seconds(recipe)`` of the steps of a run on ``source``; the machine is timed first, for half a second.

    texts, tokens: as ``fit`` will measure on.
    """

    def __init__(self, source: ModelFolder, texts: Iterable[str] = (), tokens: int | None = None):
        self.source, self.windows = source, sum(max(1, (tokens or TOKENS) // WINDOW) for _ in texts)
        experts = Counter((linear.block, linear.role) for linear in source.anatomy if "expert" in linear.roles)
        chosen = getattr(source.config.get_text_config(), "num_experts_per_tok", 1)
        # Of the tokens, how many go through each linear.
        self.share = {
            each: chosen / experts[each.block, each.role] if "expert" in each.roles else 1.0 for each in source.anatomy
        }
        self.used = sum(share * each.weights for each, share in self.share.items() if "embed" not in each.roles)
        self.product = {dtype: self._product(dtype) for dtype in {torch.float32, stored_dtype(source)}}
        numbers = torch.ones(1 << 20, device=compute_device())
        self.passes = len(numbers) / _seconds(lambda: numbers.mul(1.5))  # elements per second of an operation
        self.call = _seconds(lambda: numbers[:1].mul(1.5))

    def _product(self, dtype: torch.dtype) -> float:
        """Operations per second."""
        blocks = [linear for linear in self.source.anatomy if linear.block is not None]
        largest = max(blocks, key=lambda each: each.weights)
        rows, columns = min(largest.rows, MOST), min(largest.columns, MOST)
        x = torch.ones(TOKENS_AT_ONCE, columns, dtype=dtype, device=compute_device())
        w = torch.ones(columns, rows, dtype=dtype, device=compute_device())
        return 2 * x.numel() * rows / _seconds(lambda: x @ w)

    def seconds(self, recipe: Recipe) -> dict[str, float]:
        """Of ``compress``, ``recover`` where the recipe does so, and ``evaluate``."""
        found = {"compress": self._compression(recipe)}
        for step in recipe.of("recover"):
            options = step.options
            seen = max(options["batch"], options["samples"] * options["epochs"]) * options["length"]
            found["recover"] = TRAINING * self.used * seen / self.product[torch.float32]
            steps = seen / options["batch"] / options["length"]
            found["recover"] += steps * self.source.anatomy.blocks * TRAINING_CALLS * self.call
            parts = options["data"].split("+")
            if "synthetic" in parts:
                found["recover"] += self._writing(options["samples"] / len(parts), options["length"])
        stages = 2 + ("recover" in found)
        read = 2 * self.used * self.windows * WINDOW * (2 * stages - 1)  # the original is read beside the others again
        written = stages * PROMPTS * WRITTEN * self.source.anatomy.blocks * CALLS * self.call
        return found | {"evaluate": read / self.product[stored_dtype(self.source)] + written}

    def _compression(self, recipe: Recipe) -> float:
        jobs, product = assign(self.source, recipe), self.product[torch.float32]
        needs, seconds = frozenset().union(*(job.needs for job in jobs)), 0.0
        if needs:
            samples, length = recipe.calibration["samples"], recipe.calibration["length"]
            blocks = sum(share * each.weights for each, share in self.share.items() if each.block is not None)
            grams = {each.inputs: share * each.columns**2 for each, share in self.share.items()}
            streams = 1 + ("cross" in needs)
            seconds += 2 * samples * length * ((1 + streams) * blocks + streams * sum(grams.values())) / product
            if recipe.calibration["text"] == "synthetic":
                seconds += self._writing(samples, length)
        for job in jobs:
            for step in job.steps:
                again, linear = 1 + step.options.get("iterations", 0), job.linear
                seconds += again * PASSES * linear.weights / self.passes
                if job.needs:
                    seconds += again * linear.columns * COLUMN_CALLS * self.call
                    seconds += again * 4 * linear.columns**2 * (linear.columns + linear.rows) / product
        return seconds

    def _writing(self, samples: float, length: int) -> float:
        """Text of the model's own, a batch at a time, token by token."""
        step = (
            2 * WRITTEN_AT_ONCE * self.used / self.product[torch.float32]
            + self.source.anatomy.blocks * CALLS * self.call
        )
        return -(-samples // WRITTEN_AT_ONCE) * length * step


def how_long(source: ModelFolder, recipe: Recipe, texts: Iterable[str], tokens: int | None) -> list[str]:
    """Lines for the user; where it is more than an hour, what makes it shorter, and how short."""
    estimate = Estimate(source, texts, tokens)
    steps = estimate.seconds(recipe)
    said = ", ".join(f"{step} {duration(seconds)}" for step, seconds in steps.items())
    lines = [f"this will take roughly {duration(sum(steps.values()))}: {said} (--dry-run tries parts and knows better)"]
    if sum(steps.values()) > HOUR:
        changes, shorter = _shorten(recipe, steps, estimate)
        if changes:
            asked = " ".join(f"--set {change}" for change in changes)
            lines.append(f"roughly {duration(sum(shorter.values()))}, for less accuracy, with {asked}")
    return lines


def _shorten(recipe: Recipe, steps: dict[str, float], estimate: Estimate) -> tuple[list[str], dict[str, float]]:
    """Half the samples of what takes longest, again and again, until all takes an hour or samples are few."""
    samples = {"calibration.samples": recipe.calibration["samples"]}
    for step in recipe.of("recover"):
        samples["recover.samples"] = step.options["samples"]
    given, changes = dict(samples), []
    while sum(steps.values()) > HOUR:
        longest = max(steps, key=steps.__getitem__)
        option = {"compress": "calibration.samples", "recover": "recover.samples"}.get(longest)
        if option is None or samples[option] // 2 < FEWEST[option]:
            break
        samples[option] //= 2
        changes = [f"{name}={count}" for name, count in samples.items() if count != given[name]]
        shorter = estimate.seconds(load_recipe(recipe, changes))
        if shorter[longest] > 0.9 * steps[longest]:  # samples are not what takes so long
            break
        steps = shorter
    return changes, steps


def _seconds(work: Callable[[], Any]) -> float:
    """Of one run, the mean of some: other work on the machine is to count."""
    work()
    runs, start = 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - start < LOOK:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        runs += 1
    return (time.perf_counter() - start) / runs
