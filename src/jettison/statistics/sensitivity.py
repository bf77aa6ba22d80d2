"""What it costs a model to lose precision in one place: by gradients, or by measuring.

For a set of linears that share their bits and a grid: how far the model's output moves from what it was, in nats of
KL(original ‖ changed) per token. Kept in a journal as it is found: measuring that was killed continues; gradients,
which are found in one pass, start again.
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
Parts = Mapping[str, Sequence[Linear]]  # name of a unit -> its linears
Tried = Grid | Pattern
Grids = Mapping[str, Sequence[Tried]]  # the same -> what is tried


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
    """The loss, in nats per token, of each part on each of its grids, or pruned to each of its patterns, everything
    else being left as it is.

    parts: name -> linears that share their grid. grids: name -> grids to try. kind: ``gradients``, one backward pass
    for all of them, or ``measured``, a forward pass for each. method: the quantizer that chooses the codes (None: the
    default), or the pruner; its statistics are of the same data. samples, length: of the calibration data, by
    default windows of 256 tokens or as many as the model has positions for. The result is kept in the cache folder.

    ``gradients`` is the second order of KL, ½ E[(gᵀ E x)²] with E a matrix's change, x its input and g the gradient
    of the log-likelihood of a label drawn from the model itself, per token: the Fisher information along the change
    (arXiv:2306.07629, section 4, has its diagonal), cross terms between tokens left out. A reconstruction.

    Raises UsageError for an unknown kind or windows longer than the model's positions, JettisonError if the model does
    not fit in memory or a loss is not finite.
    """
    source = model if isinstance(model, ModelFolder) else ModelFolder(model)
    method = method or registry.default_method("quantize")
    length = source.window(LENGTH) if length is None else length
    source.check_window(length, "length")
    path, run = _record(source, data, kind, method, samples, length, seed)
    with locked(path.parent, wait=True):
        journal = Journal(path, run, cache=True)
        known = _known(journal.entries)
        wanted = {name: [grid for grid in grids[name] if (name, str(grid)) not in known] for name in parts}
        wanted = {name: missing for name, missing in wanted.items() if missing}
        if wanted:
            if not source.quantization:
                check_source(source)
            windows = data.windows(source, length, samples)
            find = partial(_by_gradients, seed=seed) if kind == "gradients" else _by_measuring
            missing = {name: parts[name] for name in wanted}
            inputs = {name: len({linear.inputs for linear in parts[name]}) for name in wanted}
            count = sum(len(of) * (inputs[name] if kind == "gradients" else 1) for name, of in wanted.items())
            with bar("sensitivity", count) as progress:
                for name, grid, loss in find(source, missing, wanted, method, windows, progress.advance):
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
    """What ``sensitivity`` with its default settings has found for a model before, and which kind that was; measured
    losses sooner than gradients. Empty and ``prior`` if something is missing."""
    if not any_known():
        return {}, "prior"
    for kind in reversed(KINDS):
        path, run = _record(source, data, kind)
        records = read_records(path)[0] if path.exists() else []
        known = _known(records[1:]) if records and records[0] == {"run": run} else {}
        if all((name, str(grid)) in known for name in parts for grid in grids[name]):
            return {name: {grid: known[name, str(grid)] for grid in grids[name]} for name in parts}, kind
    return {}, "prior"


def unseen_windows(source: ModelFolder, data: Data, count: int = SAMPLES) -> torch.Tensor:
    """(count, length) token ids of the calibration data that ``sensitivity`` with its default settings does not see."""
    every = data.windows(source, source.window(LENGTH))
    seen = data.windows(source, source.window(LENGTH), SAMPLES)
    rest = every[[not bool((seen == row).all(-1).any()) for row in every]]
    return rest[torch.arange(count) * len(rest) // count]


def _record(
    source: ModelFolder, data: Data, kind: str, method: str | None = None, samples: int = SAMPLES,
    length: int | None = None, seed: int = 0,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """The journal of what these settings find, and what its first line says."""
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


def _known(entries: Iterable[dict[str, Any] | None]) -> dict[tuple[str, str], float]:
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
    """One pass forward, one back. Everything is found as the gradient passes a matrix; only its inputs are kept."""
    model = load_dense(source, torch.float32).to(compute_device()).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    part_of = {linear.inputs: name for name, linears in parts.items() for linear in linears}
    linears = [linear for linears in parts.values() for linear in linears]
    together: dict[str, list[Linear]] = {}  # linears of one input: their codes are chosen in one go
    for linear in linears:
        together.setdefault(linear.inputs, []).append(linear)
    gradients: dict[str, torch.Tensor] = {}
    moved: dict[tuple[str, Tried], torch.Tensor] = {}  # the change of the log-likelihood at each token

    def record(linear: Linear, inputs: torch.Tensor, output: torch.Tensor) -> None:
        inputs, mates, name = inputs.detach(), together[linear.inputs], part_of[linear.inputs]

        def back(gradient: torch.Tensor) -> None:
            gradients[linear.name] = gradient.reshape(-1, linear.rows).float().cpu()  # methods run on the CPU
            if any(mate.name not in gradients for mate in mates):
                return
            x = inputs.reshape(-1, linear.columns).float().cpu()
            g = torch.cat([gradients.pop(mate.name) for mate in mates], 1)
            weight = torch.cat([dense_weight(model.get_submodule(mate.name), mate) for mate in mates])
            stats = Stats.of(x)
            for grid in grids[name]:
                error = _changed(weight, grid, method, stats) - weight
                change = ((x @ error.T) * g).sum(-1)
                if "expert" in linear.roles:  # each expert sees its own tokens
                    change = change.square().sum().reshape(1)
                moved[name, grid] = moved[name, grid] + change if (name, grid) in moved else change
                advance(note=linear.inputs)

        output.register_hook(back)

    hooks = [
        module.register_forward_hook(lambda _, args, output, linear=linear: record(linear, args[0], output))
        for linear in linears
        for module in [model.get_submodule(linear.name)]
    ]
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
    for (name, grid), change in moved.items():
        total = change.sum() if "expert" in parts[name][0].roles else change.square().sum()
        yield name, grid, 0.5 * float(total) / windows.numel()


def _by_measuring(
    source: ModelFolder, parts: Parts, grids: Grids, method: str, windows: torch.Tensor, advance: Callable[..., None]
) -> Losses:
    """A forward pass for each: in the whole model, only one part is changed at a time."""
    bench = Bench(source, windows, method)
    for name, linears in parts.items():
        for grid in grids[name]:
            with bench.changed((linear, grid) for linear in linears):
                yield name, grid, bench.divergence()
            advance(note=name)


class Bench:
    """A model in full precision whose linears can be quantized for a while, and how far its output then moves.

    windows: (samples, length) token ids that distances are measured on. statistics: those that ``method`` needs are
    taken from; the same by default.
    """

    def __init__(self, source: ModelFolder, windows: torch.Tensor, method: str, statistics: torch.Tensor | None = None):
        self.model = load_dense(source, torch.float32).to(compute_device()).eval()
        self.method, self.windows = method, windows
        self._stats: dict[str, Stats] = {}
        self._weights: dict[tuple[str, Tried], torch.Tensor] = {}
        if _find(method).needs:
            linears = [linear for linear in source.anatomy if "embed" not in linear.roles]
            with torch.no_grad(), watch(self.model, "", linears) as found:
                for ids in (windows if statistics is None else statistics).split(BATCH):
                    self._logits(ids)
            self._stats = found.stats
        with torch.no_grad():
            self.reference = [self._logits(ids).log_softmax(-1) for ids in windows.split(BATCH)]

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        return run_model(self.model, ids.to(self.model.device)).logits.float()

    def quantized(self, linear: Linear, grid: Tried) -> torch.Tensor:
        """(out, in) float32. Found once."""
        key = (linear.name, grid)
        if key not in self._weights:
            weight = dense_weight(self.model.get_submodule(linear.name), linear)
            self._weights[key] = _changed(weight, grid, self.method, self._stats.get(linear.inputs))
        return self._weights[key]

    @contextmanager
    def changed(self, grids: Iterable[tuple[Linear, Tried | None]]) -> Iterator[None]:
        """Linears on their grids; None leaves one as it is. A tied head is untied for the while."""
        before: list[tuple[nn.Module, nn.Parameter]] = []
        try:
            for linear, grid in grids:
                if grid is None:
                    continue
                module = self.model.get_submodule(linear.name)
                value = self.quantized(linear, grid)
                before.append((module, module.weight))
                value = value.T if linear.layout == "conv1d" else value
                module.weight = nn.Parameter(value.to(module.weight.device), requires_grad=False)
            yield
        finally:
            for module, weight in before:
                module.weight = weight

    @torch.no_grad()
    def divergence(self) -> float:
        """KL(original ‖ model as it stands), nats per token."""
        total = 0.0
        for ids, target in zip(self.windows.split(BATCH), self.reference, strict=True):
            guess = self._logits(ids).log_softmax(-1)
            total += float((target.exp() * (target - guess)).sum(dtype=torch.float64))
        return total / self.windows.numel()


def _find(method: str) -> registry.Method:
    """A quantizer, else a pruner."""
    return registry.find("quantize" if method in registry.methods("quantize") else "prune", method)


def _changed(weight: torch.Tensor, grid: Tried, method: str, stats: Stats | None) -> torch.Tensor:
    """What a method makes of a weight (out, in)."""
    changed = _find(method).function(weight, grid, stats)
    return changed if isinstance(grid, Pattern) else changed.dequantize()
