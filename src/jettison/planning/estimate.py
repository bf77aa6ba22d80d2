"""A rough estimate of how long ``fit`` will take on this machine, from counted operations and half a second of timing.

``forecast`` is more exact, since it tries parts of the run, but it takes about as long as compressing one block.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from jettison.core.progress import duration, silent
from jettison.graph.dense import compute_device, stored_dtype
from jettison.graph.folder import ModelFolder
from jettison.pipeline.depth_trial import try_depth
from jettison.pipeline.evaluation import TOKENS
from jettison.pipeline.generation import PROMPTS
from jettison.pipeline.generation import TOKENS as WRITTEN
from jettison.pipeline.jobs import assign
from jettison.pipeline.program_trial import try_program
from jettison.pipeline.trial import WINDOW, WRITTEN_AT_ONCE
from jettison.recipe.recipe import Recipe, load_recipe

HOUR = 3600.0
FEWEST = {"recover.samples": 256, "calibration.samples": 32}
TOKENS_AT_ONCE, MOST = 256, 4096  # tokens of the matrix product that is timed, and its largest rows and columns
LOOK = 0.1  # seconds of timing per kind of work
# Counted by hand. With these the estimates for the runs in benchmarks/results/proof.json are within a factor of
# about 1.5.
PASSES = 400  # passes over a weight to search the ranges of its groups
TRAINING = 10  # operations per weight and token: both models forward, the student backward
CALLS, COLUMN_CALLS = 200, 40  # calls of PyTorch: per block and written token, and per column of GPTQ
TRAINING_CALLS = 1000  # calls of PyTorch per block and training step


class Estimate:
    """An estimate of the seconds of each step of a run on ``source``.

    Making one times the machine for about half a second; ``seconds(recipe)`` then only counts.
    texts, tokens: the texts, and the tokens of each, that ``fit`` will measure on.
    """

    def __init__(self, source: ModelFolder, texts: Iterable[str] = (), tokens: int | None = None):
        self.source, self.windows = source, sum(max(1, (tokens or TOKENS) // WINDOW) for _ in texts)
        experts = Counter((linear.fused, linear.role) for linear in source.anatomy if "expert" in linear.roles)
        chosen = getattr(source.config.get_text_config(), "num_experts_per_tok", 1)
        # The share of the tokens that go through each linear: below 1 for an expert.
        self.share = {
            linear: chosen / experts[linear.fused, linear.role] if "expert" in linear.roles else 1.0
            for linear in source.anatomy
        }
        self.used = sum(share * linear.weights for linear, share in self.share.items() if "embed" not in linear.roles)
        self.product = {dtype: self._product(dtype) for dtype in {torch.float32, stored_dtype(source)}}
        numbers = torch.ones(1 << 20, device=compute_device())
        self.passes = len(numbers) / _seconds(lambda: numbers.mul(1.5))  # elements per second of an elementwise product
        self.call = _seconds(lambda: numbers[:1].mul(1.5))  # seconds of a call of PyTorch that does almost nothing

    def _product(self, dtype: torch.dtype) -> float:
        """Time a product with the largest linear of the blocks. Returns operations per second."""
        blocks = [linear for linear in self.source.anatomy if linear.block is not None]
        largest = max(blocks, key=lambda linear: linear.weights)
        rows, columns = min(largest.rows, MOST), min(largest.columns, MOST)
        x = torch.ones(TOKENS_AT_ONCE, columns, dtype=dtype, device=compute_device())
        w = torch.ones(columns, rows, dtype=dtype, device=compute_device())
        return 2 * x.numel() * rows / _seconds(lambda: x @ w)

    def seconds(self, recipe: Recipe) -> dict[str, float]:
        """Return the seconds of ``compress``, of ``recover`` if the recipe has that step, and of ``evaluate``."""
        estimates = {"compress": self._compression(recipe)}
        for step in recipe.of("recover"):
            options = step.options
            seen = max(options["batch"], options["samples"] * options["epochs"]) * options["length"]
            estimates["recover"] = TRAINING * self.used * seen / self.product[torch.float32]
            steps = seen / options["batch"] / options["length"]
            estimates["recover"] += steps * self.source.anatomy.blocks * TRAINING_CALLS * self.call
            parts = options["data"].split("+")
            if "synthetic" in parts:
                estimates["recover"] += self._writing(options["samples"] / len(parts), options["length"])
        stages = 2 + ("recover" in estimates)
        # The original is run once for itself and again beside every other stage, to compare with.
        read = 2 * self.used * self.windows * WINDOW * (2 * stages - 1)
        written = stages * PROMPTS * WRITTEN * self.source.anatomy.blocks * CALLS * self.call
        return estimates | {"evaluate": read / self.product[stored_dtype(self.source)] + written}

    def _compression(self, recipe: Recipe) -> float:
        """Return the seconds of calibration and of the methods."""
        jobs, product = assign(self.source, recipe), self.product[torch.float32]
        needs, seconds = frozenset().union(*(job.needs for job in jobs)), 0.0
        if needs:
            samples, length = recipe.calibration["samples"], recipe.calibration["length"]
            blocks = sum(share * linear.weights for linear, share in self.share.items() if linear.block is not None)
            grams = {linear.inputs: share * linear.columns**2 for linear, share in self.share.items()}
            streams = 1 + ("cross" in needs)  # "cross" also needs the activations of the original
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
        """Return the seconds in which the model writes calibration or training text, a batch at a time."""
        step = (
            2 * WRITTEN_AT_ONCE * self.used / self.product[torch.float32]
            + self.source.anatomy.blocks * CALLS * self.call
        )
        return -(-samples // WRITTEN_AT_ONCE) * length * step


def how_long(source: ModelFolder, recipe: Recipe, texts: Iterable[str], tokens: int | None) -> list[str]:
    """Return lines for the user: the estimated time, and for more than an hour a shorter run with fewer samples."""
    estimate = Estimate(source, texts, tokens)
    steps = estimate.seconds(recipe)
    parts = ", ".join(f"{step} {duration(seconds)}" for step, seconds in steps.items())
    lines = [f"this will take roughly {duration(sum(steps.values()))}: {parts} (--dry-run estimates this better)"]
    if sum(steps.values()) > HOUR:
        changes, shorter = _shorten(recipe, steps, estimate)
        if changes:
            options = " ".join(f"--set {change}" for change in changes)
            lines.append(f"roughly {duration(sum(shorter.values()))}, for less accuracy, with {options}")
    return lines


def how_long_training(source: ModelFolder, recipe: Recipe) -> list[str]:
    """Return a line with the estimated time of a depth or a program step; [] without one.

    A few images are trained on, or a call of a denoiser is timed, to find out.
    """
    lines = []
    for step in recipe.of("depth"):
        with silent():
            seconds = try_depth(source, recipe, step).seconds
        lines.append(f"pruning the depth will take roughly {duration(seconds)}")
    for step in recipe.of("program"):
        with silent():
            seconds = try_program(source, step).seconds
        lines.append(f"finding a program will take roughly {duration(seconds)}")
    return lines


def _shorten(recipe: Recipe, steps: dict[str, float], estimate: Estimate) -> tuple[list[str], dict[str, float]]:
    """Halve the samples of the longest step until the run takes at most an hour or samples reach their minimum.

    Returns the changes of the recipe, and the seconds of the steps with them.
    """
    samples = {"calibration.samples": recipe.calibration["samples"]}
    for step in recipe.of("recover"):
        samples["recover.samples"] = step.options["samples"]
    original, changes = dict(samples), []
    while sum(steps.values()) > HOUR:
        longest = max(steps, key=steps.__getitem__)
        option = {"compress": "calibration.samples", "recover": "recover.samples"}.get(longest)
        if option is None or samples[option] // 2 < FEWEST[option]:
            break
        samples[option] //= 2
        changes = [f"{name}={count}" for name, count in samples.items() if count != original[name]]
        shorter = estimate.seconds(load_recipe(recipe, changes))
        if shorter[longest] > 0.9 * steps[longest]:  # the number of samples is not what makes this step long
            break
        steps = shorter
    return changes, steps


def _seconds(work: Callable[[], Any]) -> float:
    """Return the mean seconds of several runs of ``work``. A mean, since other load on the machine must count too."""
    work()
    runs, start = 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - start < LOOK:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        runs += 1
    return (time.perf_counter() - start) / runs
