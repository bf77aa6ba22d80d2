"""DiP-GO's search: a few hundred gradient steps give a score to every computation of a run.

Example:
    result = search(sampling_of(pipe, request), SearchOptions(steps=500), folder, count=1000)
    program = result.program(ratio=0.6)
    write_program("program.json", program)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jettison.core.errors import UsageError, unknown
from jettison.core.journal import Journal
from jettison.domains.diffusion.denoisers import places, row_of
from jettison.domains.diffusion.differentiable import Sampling
from jettison.domains.diffusion.gate_net import Encoder, GateNet, straight_through
from jettison.domains.diffusion.identity import Identity, identify
from jettison.domains.diffusion.program import Costs, Program, gate_texts
from jettison.domains.diffusion.supernet import Supernet
from jettison.domains.diffusion.tracing import trace
from jettison.metrics.ssim import ssim
from jettison.policies.cascade import Graph, What
from jettison.policies.cut import Scores, cut
from jettison.training.loop import Group, Plan, train

STATE, JOURNAL = "search.safetensors", "search.jsonl"
Likeness = Literal["ssim", "l1", "l2"]


@dataclass(frozen=True)
class SearchOptions:
    """The settings of a search; the defaults are the paper's.

    steps, batch: of the training; a batch is that many samples.
    rate: of SGD; None takes that of the class of denoiser, scaled to the number of gates, see ``default_rate``.
    decay: of the weights of the pruner network.
    alpha: weight of the sparsity term. tau: the share of a run's FLOPs below which that term is dropped.
    likeness: what makes the result like the full run's: ``ssim``, ``l1`` or ``l2``.
    weighted: weight each gate by the FLOPs that closing it saves, cascade included.
    reuse: what closed gates reuse. The paper's is ``output``; ``residual``, ours, is for transformers.
    width, encoder: of the pruner network.
    warmup: share of the steps in which the learning rate rises; the published code has 10 steps of 500.
    checkpointing: recompute each call of the denoiser in the backward pass.
    Source: arXiv:2410.16942, section 4.1 and the published code.
    """

    steps: int = 1000
    batch: int = 1
    rate: float | None = None
    decay: float = 1e-4
    alpha: float = 1.0
    tau: float = 0.2
    likeness: Likeness = "ssim"
    weighted: bool = True
    reuse: What = "output"
    width: int = 512
    encoder: Encoder = "attention"
    warmup: float = 0.02
    checkpointing: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"search: {name} = {getattr(self, name)}: a positive whole number is needed")
        for name, low in (("decay", 0), ("alpha", 0), ("tau", 0), ("warmup", 0)):
            if not getattr(self, name) >= low:
                raise UsageError(f"search: {name} = {getattr(self, name)}: a number of at least {low} is needed")
        if self.likeness not in LIKENESS:
            raise unknown("likeness", self.likeness, LIKENESS)


@dataclass(frozen=True)
class SearchResult:
    """The scores of a search, from which programs of all ratios are cut.

    scores: (calls, units): a higher score means that the computation matters more.
    """

    scores: Scores
    graph: Graph
    model: Identity
    sampler: str
    steps: int
    units: tuple[str, ...]
    reuse: What = "output"
    source: str = ""

    @property
    def calls(self) -> int:
        """How often a run calls the denoiser."""
        return len(self.scores)

    @property
    def most(self) -> float:
        """The largest share of the FLOPs of a run that a program can save: only the first call is computed."""
        return self.graph.pruned([[call == 0] * self.graph.units for call in range(self.calls)], self.reuse)

    def program(self, ratio: float, how: str = "bisection") -> Program:
        """Return the program that saves the share ``ratio`` of the FLOPs of a run; see ``policies.cut.cut``."""
        chosen = cut(self.scores, ratio, self.graph, self.reuse, how)
        return self.of_gates(chosen.rows, f"{self.source}, {how}, ratio {ratio:g}")

    def of_gates(self, rows: Sequence[Sequence[bool]], source: str) -> Program:
        """Return the program of a table of gates, (calls, units). Open are exactly the units that are then computed."""
        rows = [self.graph.computed(row, self.reuse) for row in rows]
        costs = Costs(
            units=list(self.graph.flops), rest=self.graph.rest, run=self.graph.cost(rows, self.reuse),
            full=len(rows) * self.graph.call,
        )  # fmt: skip
        return Program(
            model=self.model, sampler=self.sampler, steps=self.steps, units=list(self.units),
            gates=gate_texts(rows), reuse=self.reuse, costs=costs, source=source,
        )  # fmt: skip


def describe(sampling: Sampling, scores: Scores, reuse: What = "output", source: str = "given scores") -> SearchResult:
    """Join scores of any origin, (calls, units), with all that a program of them must know.

    Raises UsageError if the run of the sampling has another number of calls or units.
    """
    return with_scores(traced(sampling, reuse), scores, source)


def with_scores(run: SearchResult, scores: Scores, source: str) -> SearchResult:
    """Return a traced run with scores, (calls, units). Raises UsageError for another number of calls or units."""
    if len(scores) != run.calls or any(len(row) != len(run.units) for row in scores):
        raise UsageError(f"scores: {run.calls} calls of {len(run.units)} units are needed")
    return replace(run, scores=scores, source=source)


def traced(sampling: Sampling, reuse: What = "output") -> SearchResult:
    """Trace a sampling: find what a program of it must know. All scores of the result are 0.

    Raises UsageError for a denoiser that cannot reuse what is asked for.
    """
    denoiser = sampling.denoiser
    units = places(denoiser)
    if reuse == "residual" and not all(place.unit.aligned for place in units):
        raise UsageError(f"reuse = residual: the blocks of {type(denoiser).__name__} have no residual; use output")
    graph = trace(sampling.target, lambda: sampling.images([0]), sampling.scheduler)
    sampler, steps = type(sampling.scheduler).__name__, int(sampling.scheduler.num_inference_steps)
    names = tuple(place.unit.name for place in units)
    scores = [[0.0] * len(names) for _ in range(_calls(sampling))]
    return SearchResult(scores, graph, identify(denoiser), sampler, steps, names, reuse)


def _calls(sampling: Sampling) -> int:
    """Return how often a run calls the denoiser; the scheduler's steps must have been set."""
    return len(sampling.scheduler.timesteps) - (getattr(sampling.scheduler, "begin_index", None) or 0)


def search(
    sampling: Sampling, options: SearchOptions, folder: Path, count: int, *, save_every: float = 60.0, note: Any = None
) -> SearchResult:
    """Learn which computations of a run matter. A search that was killed continues, and gives the same bytes.

    sampling: with the sampler and the number of steps of the program.
    folder: holds the state, and a line in a journal for every step: loss, likeness, sparsity, kept FLOPs.
    count: how many samples there are, with the indices 0 to count - 1.
    note: what the samples are, as JSON, so that a folder is not continued with others.
    The weights of the model stay as they are.
    Raises UsageError for a folder of another search, and for a denoiser that cannot reuse what the options say.
    """
    denoiser, result = sampling.denoiser, traced(sampling, options.reuse)
    graph = result.graph
    run = {
        "kind": "search", "model": result.model.model_dump(), "sampler": result.sampler, "steps": result.steps,
        "options": asdict(options), "count": count, "samples": note, "torch": torch.__version__,
    }  # fmt: skip
    journal = Journal(folder / JOURNAL, run)
    net = GateNet(result.calls, graph.units, options.width, options.encoder, options.seed)
    net.to(next(denoiser.parameters()).device)
    frozen = [
        weight for module in sampling.modules or (denoiser,) for weight in module.parameters() if weight.requires_grad
    ]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        with Supernet(sampling.target, graph, sampling.scheduler, options.reuse, options.checkpointing) as supernet:
            lesson = SearchLesson(net, supernet, sampling, options)
            rate = default_rate(denoiser, net.shape) if options.rate is None else options.rate
            plan = Plan(
                options.steps, options.batch, count, options.seed, warmup=options.warmup, weight_decay=options.decay,
                optimizer="sgd", advice="lower the rate of the search",
            )  # fmt: skip
            record = lambda step, loss: journal.add(step=step, loss=round(loss, 6), **lesson.last)
            trained = train(
                lesson, [Group(dict(net.named_parameters()), rate)], lambda indices, step: (indices,), plan,
                folder / STATE, save_every=save_every, record=record, name="search",
            )  # fmt: skip
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
    net.load_state_dict(trained)
    return with_scores(result, net.scores().cpu().double().tolist(), f"DiP-GO, {options.steps} steps")


def default_rate(denoiser: nn.Module, shape: tuple[int, int]) -> float:
    """Return the learning rate of a search: the paper's for its models, and in proportion to the number of gates.

    shape: calls and units of the program.
    """
    rate = row_of(denoiser).caching.rate
    return rate.value * shape[0] * shape[1] / rate.gates


class SearchLesson(nn.Module):
    """Maps indices of samples to the loss of the gates. ``last``: the parts of the last loss."""

    def __init__(self, net: GateNet, supernet: Supernet, sampling: Sampling, options: SearchOptions):
        super().__init__()
        self.net, self._supernet, self._sampling, self._options = net, supernet, sampling, options
        graph = supernet.graph
        shares = graph.shares(options.reuse) if options.weighted else [1.0] * graph.units
        self.register_buffer("weights", torch.tensor(shares) / sum(shares), persistent=False)
        self.last: dict[str, float] = {}

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the loss: 1 - likeness of the gated and the full run, and the share of computations that are kept."""
        options, supernet, indices = self._options, self._supernet, indices.tolist()
        gates = straight_through(self.net())  # (calls, units)
        supernet.gates = None
        with torch.no_grad():
            full = self._sampling.images(indices).float()
        supernet.gates = gates
        try:
            gated = self._sampling.images(indices).float()
        finally:
            supernet.gates = None
        if not gated.requires_grad:
            raise UsageError("the sampling turns gradients off: a gate cannot be learned")
        loss = unlike = LIKENESS[options.likeness](gated, full, self._sampling.span)
        sparsity = (gates[1:] @ self.weights.to(gates)).mean()
        kept = 1 - supernet.graph.pruned((gates.detach() > 0.5).tolist(), options.reuse)
        if kept > options.tau:
            loss = loss + options.alpha * sparsity
        self.last = {"unlike": float(unlike.detach()), "sparsity": float(sparsity.detach()), "kept": kept}
        self.last = {name: round(value, 6) for name, value in self.last.items()}
        return loss


def per_sample_ssim(gated: torch.Tensor, full: torch.Tensor, span: float | None) -> torch.Tensor:
    """Return the structural similarity of every sample with its full run, (samples,).

    span: see ``Sampling``; without one, that of each sample of the full run counts.
    """
    flat = full.flatten(1)
    return ssim(gated, full, (flat.amax(1) - flat.amin(1)).clamp(min=1e-6) if span is None else span)


LIKENESS = {
    "ssim": lambda gated, full, span: 1 - per_sample_ssim(gated, full, span).mean(),
    "l1": lambda gated, full, span: (gated - full).abs().mean(),
    "l2": lambda gated, full, span: (gated - full).square().mean(),
}
