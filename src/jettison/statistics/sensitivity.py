"""Sensitivity: the loss of a model when one part of it is quantized or pruned, from gradients or by measurement.

- A part is a set of linears that share a grid. Its loss is KL(original ‖ changed) of the model's output, in nats per
  token.
- Losses are written to a journal. A measurement that was killed continues. Gradients need only one pass, which starts
  again.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import digest
from jettison.core.journal import Journal, read_records
from jettison.core.locks import locked
from jettison.core.progress import bar
from jettison.encodings.grid import Grid
from jettison.encodings.pattern import Pattern
from jettison.graph.anatomy import Linear
from jettison.graph.dense import compute_device, load_dense
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import dense_weight
from jettison.graph.skeleton import run_model
from jettison.graph.source_check import check_source
from jettison.recipe import registry
from jettison.statistics.data import Data
from jettison.statistics.known import any_known, sensitivity_folder
from jettison.statistics.stats import Stats, watch

BATCH, SAMPLES, LENGTH = 4, 16, 256
KINDS = ("gradients", "measured")
Parts = Mapping[str, Sequence[Linear]]  # name of a part -> its linears
Tried = Grid | Pattern
Grids = Mapping[str, Sequence[Tried]]  # name of a part -> the grids or patterns to try


def sensitivity(
    model: str | Path | ModelFolder,
    parts: Parts,
    grids: Grids,
    data: Data,
    *,
    kind: str = "gradients",
    method: str | None = None,
    samples: int = SAMPLES,
    length: int | None = None,
    seed: int = 0,
) -> dict[str, dict[Tried, float]]:
    """Estimate or measure the loss of every part on every one of its grids or patterns, with all other parts unchanged.

    parts: name -> the linears that share a grid.
    grids: name -> the grids or patterns to try.
    data: the calibration data.
    kind: ``gradients``, one backward pass for all parts, or ``measured``, one forward pass per part and grid.
    method: the quantizer (None: the default) or the pruner. Its statistics are of the same data.
    samples: the number of windows.
    length: tokens per window; by default 256, or the model's number of positions if it is less.
    seed: of the labels that ``gradients`` draws.

    ``gradients`` is the second-order term of KL, ½ E[(gᵀ E x)²] per token. E is the change of a matrix, x its input,
    and g the gradient of the log-likelihood of a label that is drawn from the model itself. This is the Fisher
    information along the change, without cross terms between tokens (arXiv:2306.07629, section 4, uses its diagonal);
    our reconstruction.

    Returns name -> grid -> loss in nats per token, which is also stored in the cache folder.
    Raises UsageError for an unknown kind or windows longer than the model's positions, JettisonError if the model does
    not fit in memory or a loss is not finite.
    """
    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    method = method or registry.default_method("quantize")
    length = source.window(LENGTH) if length is None else length
    source.check_window(length, "length")
    path, run = _journal_of(source, data, kind, method, samples, length, seed)
    with locked(path.parent, wait=True):
        journal = Journal(path, run, cache=True)
        known = _losses_of(journal.entries)
        untried = {name: [grid for grid in grids[name] if (name, str(grid)) not in known] for name in parts}
        untried = {name: missing for name, missing in untried.items() if missing}
        if untried:
            if not source.quantization:
                check_source(source)
            windows = data.windows(source, length, samples)
            losses = partial(_by_gradients, seed=seed) if kind == "gradients" else _by_measuring
            missing = {name: parts[name] for name in untried}
            inputs = {name: len({linear.inputs for linear in parts[name]}) for name in untried}
            count = sum(len(tried) * (inputs[name] if kind == "gradients" else 1) for name, tried in untried.items())
            with bar("sensitivity", count) as progress:
                for name, grid, loss in losses(source, missing, untried, method, windows, progress.advance):
                    if not math.isfinite(loss):
                        raise JettisonError(
                            f"{source.name}: the loss of {name} on {grid} is {loss}: its outputs overflow"
                        )
                    journal.add(part=name, grid=str(grid), loss=loss)
                    known[name, str(grid)] = loss
    return {name: {grid: known[name, str(grid)] for grid in grids[name]} for name in parts}


def known_sensitivity(
    source: ModelFolder, parts: Parts, grids: Grids, data: Data
) -> tuple[dict[str, dict[Grid, float]], str]:
    """Read the losses that ``sensitivity`` with its default settings has stored for a model.

    Returns the losses, as ``sensitivity`` does, and their kind. Measured losses are preferred to gradients.
    If any loss is missing, the result is empty and the kind is ``prior``.
    """
    if not any_known():
        return {}, "prior"
    for kind in reversed(KINDS):
        path, run = _journal_of(source, data, kind)
        records = read_records(path)[0] if path.exists() else []
        known = _losses_of(records[1:]) if records and records[0] == {"run": run} else {}
        if all((name, str(grid)) in known for name in parts for grid in grids[name]):
            return {name: {grid: known[name, str(grid)] for grid in grids[name]} for name in parts}, kind
    return {}, "prior"


def unseen_windows(source: ModelFolder, data: Data, count: int = SAMPLES) -> torch.Tensor:
    """Return windows of the calibration data that ``sensitivity`` with its default settings does not use.

    Returns token ids, (count, length).
    """
    all_windows = data.windows(source, source.window(LENGTH))
    seen = data.windows(source, source.window(LENGTH), SAMPLES)
    unseen = all_windows[[not bool((seen == row).all(-1).any()) for row in all_windows]]
    return unseen[torch.arange(count) * len(unseen) // count]


def _journal_of(
    source: ModelFolder, data: Data, kind: str, method: str | None = None, samples: int = SAMPLES,
    length: int | None = None, seed: int = 0,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Return the path of the journal for these settings, and the content of its first line.

    Raises UsageError for an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"sensitivity {kind!r}: {' and '.join(KINDS)} are valid")
    length = source.window(LENGTH) if length is None else length
    settings = {
        "kind": kind,
        "method": method or registry.default_method("quantize"),
        "text": data.digest,
        "samples": samples,
    }
    run = {"model": source.fingerprint()} | settings | {"length": length, "seed": seed}
    return sensitivity_folder() / digest(*map(str, run.values())) / "losses.jsonl", run


def _losses_of(entries: Iterable[dict[str, Any] | None]) -> dict[tuple[str, str], float]:
    """Return the losses in a journal: (part, grid as text) -> loss."""
    return {(entry["part"], entry["grid"]): entry["loss"] for entry in entries if entry}


Losses = Iterator[tuple[str, Tried, float]]


def _by_gradients(
    source: ModelFolder,
    parts: Parts,
    grids: Grids,
    method: str,
    windows: torch.Tensor,
    advance: Callable[..., None],
    seed: int,
) -> Losses:
    """Yield the losses from one forward and one backward pass.

    The loss of a part is computed when the gradient reaches its matrices. Between the passes only inputs are stored.
    """
    model = load_dense(source, torch.float32).to(compute_device()).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    part_of = {linear.inputs: name for name, linears in parts.items() for linear in linears}
    linears = [linear for linears in parts.values() for linear in linears]
    same_input: dict[str, list[Linear]] = {}  # linears with the same input: a method compresses them as one matrix
    for linear in linears:
        same_input.setdefault(linear.inputs, []).append(linear)
    gradients: dict[str, torch.Tensor] = {}
    changes: dict[tuple[str, Tried], torch.Tensor] = {}  # (tokens,), the change of the log-likelihood at every token

    def record(linear: Linear, inputs: torch.Tensor, output: torch.Tensor) -> None:
        inputs, group, name = inputs.detach(), same_input[linear.inputs], part_of[linear.inputs]

        def back(gradient: torch.Tensor) -> None:
            gradients[linear.name] = gradient.reshape(-1, linear.rows).float().cpu()  # methods run on the CPU
            if any(member.name not in gradients for member in group):
                return
            x = inputs.reshape(-1, linear.columns).float().cpu()  # (tokens, in)
            g = torch.cat([gradients.pop(member.name) for member in group], 1)  # (tokens, out)
            weight = torch.cat([dense_weight(model.get_submodule(member.name), member) for member in group])
            stats = Stats.of(x)
            for grid in grids[name]:
                error = _compress(weight, grid, method, stats) - weight
                change = ((x @ error.T) * g).sum(-1)  # (tokens,)
                # Every expert has its own tokens, so changes of several experts cannot be added token by token.
                if "expert" in linear.roles:
                    change = change.square().sum().reshape(1)
                changes[name, grid] = changes[name, grid] + change if (name, grid) in changes else change
                advance(note=linear.inputs)

        output.register_hook(back)

    hooks = [
        module.register_forward_hook(lambda _, args, output, linear=linear: record(linear, args[0], output))
        for linear in linears
        for module in [model.get_submodule(linear.name)]
    ]
    # All weights are frozen, so the embeddings must require gradients for a backward pass to run.
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    windows = windows.to(compute_device())
    with torch.enable_grad():
        logits = run_model(model, windows).logits.float()  # (samples, length, vocabulary)
        if not logits.isfinite().all():
            raise JettisonError(
                f"{source.name}: not all logits on the calibration text are finite: its outputs overflow"
            )
        rng = torch.Generator(logits.device).manual_seed(seed)
        flat = logits.detach().softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(flat, 1, generator=rng).view(windows.shape)
        likelihood = logits.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).sum()
        likelihood.backward()
    for hook in hooks:
        hook.remove()
    # ½ E[(gᵀ E x)²]. The changes of experts are already squared.
    for (name, grid), change in changes.items():
        total = change.sum() if "expert" in parts[name][0].roles else change.square().sum()
        yield name, grid, 0.5 * float(total) / windows.numel()


def _by_measuring(
    source: ModelFolder, parts: Parts, grids: Grids, method: str, windows: torch.Tensor, advance: Callable[..., None]
) -> Losses:
    """Yield the losses from one forward pass per part and grid, with only this part of the model changed."""
    bench = Bench(source, windows, method)
    for name, linears in parts.items():
        for grid in grids[name]:
            with bench.changed((linear, grid) for linear in linears):
                yield name, grid, bench.divergence()
            advance(note=name)


class Bench:
    """A model in full precision whose linears can be compressed for a while, to measure how far its output moves.

    windows: (samples, length), token ids on which the divergence is measured.
    method: the quantizer or pruner.
    statistics: (samples, length), token ids for the statistics that ``method`` needs; ``windows`` by default.
    """

    def __init__(self, source: ModelFolder, windows: torch.Tensor, method: str, statistics: torch.Tensor | None = None):
        self.model = load_dense(source, torch.float32).to(compute_device()).eval()
        self.method, self.windows, self._head = method, windows, source.anatomy.head
        self._stats: dict[str, Stats] = {}
        self._weights: dict[tuple[str, Tried], torch.Tensor] = {}
        if _find_method(method).needs:
            linears = [linear for linear in source.anatomy if "embed" not in linear.roles]
            with torch.no_grad(), watch(self.model, "", linears) as watching:
                for ids in (windows if statistics is None else statistics).split(BATCH):
                    self._logits(ids)
            self._stats = watching.stats
        with torch.no_grad():
            self.reference = [self._logits(ids).log_softmax(-1) for ids in windows.split(BATCH)]

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch, (samples, length, vocabulary) float32."""
        return run_model(self.model, ids.to(self.model.device)).logits.float()

    def quantized(self, linear: Linear, grid: Tried) -> torch.Tensor:
        """Return the weight of a linear on a grid, dequantized, or pruned to a pattern: (out, in) float32. Cached."""
        if "embed" in linear.roles and self._head is not None:  # it has the codes of the head, which it is tied to
            linear = self._head
        key = (linear.name, grid)
        if key not in self._weights:
            weight = dense_weight(self.model.get_submodule(linear.name), linear)
            self._weights[key] = _compress(weight, grid, self.method, self._stats.get(linear.inputs))
        return self._weights[key]

    @contextmanager
    def changed(self, grids: Iterable[tuple[Linear, Tried | None]]) -> Iterator[None]:
        """Put linears on grids inside a ``with`` statement. None leaves a linear unchanged. A tied head is untied."""
        originals: list[tuple[nn.Module, nn.Parameter]] = []
        try:
            for linear, grid in grids:
                if grid is None:
                    continue
                module = self.model.get_submodule(linear.name)
                value = self.quantized(linear, grid)
                originals.append((module, module.weight))
                value = value.T if linear.layout == "conv1d" else value
                module.weight = nn.Parameter(value.to(module.weight.device), requires_grad=False)
            yield
        finally:
            for module, weight in originals:
                module.weight = weight

    @torch.no_grad()
    def divergence(self) -> float:
        """Return KL(original ‖ current model), in nats per token."""
        total = 0.0
        for ids, target in zip(self.windows.split(BATCH), self.reference, strict=True):
            current = self._logits(ids).log_softmax(-1)
            total += float((target.exp() * (target - current)).sum(dtype=torch.float64))
        return total / self.windows.numel()


def _find_method(method: str) -> registry.Method:
    """Return the quantizer of this name, else the pruner."""
    return registry.find("quantize" if method in registry.methods("quantize") else "prune", method)


def _compress(weight: torch.Tensor, grid: Tried, method: str, stats: Stats | None) -> torch.Tensor:
    """Compress a weight (out, in) with a method, and return it as (out, in) float32."""
    changed = _find_method(method).function(weight, grid, stats)
    return changed if isinstance(grid, Pattern) else changed.dequantize()
