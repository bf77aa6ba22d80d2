"""What a method that finds programs receives, and the tools that such methods share.

A method of the verb ``program`` returns ``Programs``: a function from a ratio to the program that saves this share of
the FLOPs of a run. So one search serves all ratios.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from jettison.core.errors import JettisonError
from jettison.core.journal import Journal
from jettison.domains.diffusion.denoisers import places
from jettison.domains.diffusion.differentiable import Sampling
from jettison.domains.diffusion.folder_sampling import FolderSampler
from jettison.domains.diffusion.program import Costs, Program, gate_texts
from jettison.domains.diffusion.running import Handle, attach
from jettison.domains.diffusion.search import SearchOptions, SearchResult, search, traced, with_scores
from jettison.domains.diffusion.trajectories import open_scheduler, set_steps
from jettison.policies.gates import Gates
from jettison.policies.interval import outermost
from jettison.policies.output_change import OutputChange
from jettison.policies.random_skip import random_scores

Programs = Callable[[float], Program]
BATCH = 8  # samples at once


@dataclass
class ProgramTask:
    """The input of a method that finds programs.

    sampler: of the original; it has ``samples`` samples.
    steps: of the full run.
    folder: for the state of a search.
    journal: of the run; what is recorded there is not done again.
    """

    sampler: FolderSampler
    samples: int
    steps: int
    folder: Path
    journal: Journal
    seed: int = 0
    save_every: float = 60.0

    @cached_property
    def run(self) -> SearchResult:
        """The full run: its calls, units and costs. All scores are 0."""
        return traced(self.sampler.sampling(self.steps))

    def search(self, options: SearchOptions) -> SearchResult:
        """Run or continue DiP-GO's search; see ``search.search``. Its scores are kept in the journal."""
        if done := self.journal.last(searched=True):
            reused = traced(self.sampler.sampling(self.steps), options.reuse)
            return with_scores(reused, done["scores"], done["source"])
        sampling = self.sampler.sampling(self.steps)
        result = search(sampling, options, self.folder, self.samples, save_every=self.save_every)
        self.journal.add(searched=True, source=result.source, scores=result.scores)
        return result

    def output_changes(self, runs: int) -> SearchResult:
        """Return scores: how much the output of every unit changes from step to step, the mean of some full runs."""
        if not (done := self.journal.last(watched=runs)):
            sampling, policy = self.sampler.sampling(self.steps), OutputChange()
            with attach(sampling.target, policy, sampling.scheduler), torch.no_grad():
                for index in range(runs):
                    sampling.images([index % self.samples])
            self.journal.add(watched=runs, scores=policy.scores())
            done = self.journal.last(watched=runs)
        return with_scores(self.run, done["scores"], f"greedy by output change, {runs} runs")

    def random(self) -> SearchResult:
        """Return random scores, which depend on the seed of the task alone."""
        return with_scores(self.run, random_scores(self.run.calls, len(self.run.units), self.seed), "random")

    def every(self, computed: int, shallow: int = 0) -> Program:
        """Return the program that computes ``computed`` calls of a run, spread evenly, and reuses outputs in between.

        shallow: the number of outermost blocks of a UNet, on each side, that are always computed.
        """
        run, calls = self.run, self.run.calls
        always = outermost([place.unit for place in places(self.sampler.denoiser)], shallow)
        full = {number * calls // computed for number in range(computed)}
        rows = [[call in full or unit in always for unit in range(len(run.units))] for call in range(calls)]
        return run.of_gates(rows, f"uniform caching, {computed} of {calls} calls computed")

    def fewer(self, steps: int) -> Program | None:
        """Return the program of a shorter run, in which everything is computed; None if the sampler cannot run it."""
        run, source = self.run, self.sampler.source
        calls = 0
        with suppress(JettisonError):
            calls = set_steps(source, open_scheduler(source), steps)
        if not 0 < calls <= run.calls:
            return None
        costs = Costs(
            units=list(run.graph.flops), rest=run.graph.rest, run=calls * run.graph.call,
            full=run.calls * run.graph.call,
        )  # fmt: skip
        return Program(
            model=run.model, sampler=run.sampler, steps=steps, units=list(run.units),
            gates=gate_texts([[True] * len(run.units)] * calls), costs=costs, source=f"{steps} of {self.steps} steps",
        )  # fmt: skip


def nearest(programs: Sequence[Program | None], ratio: float) -> Program:
    """Return the program whose saved share is nearest to a ratio; of two as near, the one that saves more."""
    known = [program for program in programs if program is not None]
    return min(known, key=lambda program: (abs(round(program.costs.pruned - ratio, 9)), -program.costs.pruned))


@contextmanager
def at_work(sampler: FolderSampler, program: Program, decode: bool = True) -> Iterator[tuple[Sampling, Handle]]:
    """Run a program in a sampler inside the block. Yields its sampling, of as many steps as it is for, and the handle.

    The program is not compared with the weights: the caller has found it on them, or checked it.
    """
    sampling = sampler.sampling(program.steps, decode)
    gates = Gates(program.rows, program.reuse, program.sampler, program.steps)
    with attach(sampling.target, gates, sampling.scheduler) as handle:
        yield sampling, handle


@torch.no_grad()
def draw(sampling: Sampling, count: int) -> torch.Tensor:
    """Return the images, or latents, of the first ``count`` samples, some at once."""
    parts = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    return torch.cat([sampling.images(part).float().cpu() for part in parts])
