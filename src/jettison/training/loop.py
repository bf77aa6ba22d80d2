"""One loop for every training: AdamW or SGD with a cosine schedule, over several processes, resumable.

- Batches depend only on the seed and the step, so a run that was killed and resumed gives the same bytes.
- The state (parameters, both moments, buffers such as BatchNorm's, the best parameters so far) is one sealed file.
- With a judge, the best parameters are returned, not the last.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from jettison.core.errors import JettisonError
from jettison.core.progress import bar, say
from jettison.core.sealed import read_sealed, write_sealed

Fetch = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]  # indices of samples, step -> inputs of the lesson


@dataclass(frozen=True)
class Group:
    """Parameters by name, and the peak of their learning rate."""

    parameters: Mapping[str, nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Plan:
    """The settings of a training.

    batch: the number of samples per step, over all processes.
    count: the number of samples that there are.
    warmup: the share of the steps in which the learning rate rises.
    clip: the greatest norm of the gradient.
    optimizer: ``adamw``, or ``sgd``: without momentum, with the decay in the gradient.
    advice: the end of the error message if the loss is not finite.
    """

    steps: int
    batch: int
    count: int
    seed: int = 0
    warmup: float = 0.03
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    advice: str = "lower the learning rate"


@dataclass(frozen=True)
class Judge:
    """A measure of the model during training.

    score: returns how good the current model is; higher is better.
    every: the number of steps between two calls of ``score``. It is also called at the end.
    """

    score: Callable[[], float]
    every: int


def train(
    lesson: nn.Module,
    groups: Iterable[Group],
    fetch: Fetch,
    plan: Plan,
    state: Path,
    *,
    buffers: Mapping[str, torch.Tensor] | None = None,
    judge: Judge | None = None,
    save_every: float = 60.0,
    record: Callable[[int, float], None] = lambda step, loss: None,
    name: str = "train",
    loss_name: str = "loss",
    accelerator: Accelerator | None = None,
) -> dict[str, torch.Tensor]:
    """Minimize the loss that ``lesson`` returns.

    lesson: a module that maps the tensors of ``fetch`` to a scalar loss.
    groups: the parameters to train.
    fetch: returns the inputs of the lesson for the indices of some samples and a step.
    state: the file that stores the state of the training. If it exists, the training is resumed.
    buffers: tensors that the lesson changes in place.
    judge: None means that the last parameters are returned.
    save_every: seconds between two saves.
    record: called with every step and its loss, in the main process.
    name, loss_name: shown in the progress bar.
    Returns parameters and buffers by name, on the CPU.
    Raises JettisonError for a loss that is not finite.
    """
    accelerator, buffers = accelerator or make_accelerator(), dict(buffers or {})
    groups = [group for group in groups if group.parameters]
    trained = {name: parameter for group in groups for name, parameter in group.parameters.items()}
    rates = [{"params": list(group.parameters.values()), "lr": group.rate, "peak": group.rate} for group in groups]
    if plan.optimizer == "sgd":
        optimizer = torch.optim.SGD(rates, weight_decay=plan.weight_decay)
    else:
        optimizer = torch.optim.AdamW(rates, betas=plan.betas, weight_decay=plan.weight_decay)
    lesson, optimizer = accelerator.prepare(lesson, optimizer)
    run = _Run(state, trained, buffers, optimizer)
    done, saved = run.resume(), time.monotonic()
    with bar(name, plan.steps, done) as progress, torch.random.fork_rng():
        for step in range(done, plan.steps):
            torch.manual_seed(plan.seed * 1_000_003 + step)  # so that dropout depends only on seed and step
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, plan.steps, plan.warmup)
            indices = sample_indices(step, plan.batch, plan.count, plan.seed)
            # Every process takes its share of the batch.
            own_indices = indices[accelerator.process_index :: accelerator.num_processes]
            loss = lesson(*(tensor.to(accelerator.device) for tensor in fetch(own_indices, step)))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.values(), plan.clip)
            optimizer.step()
            optimizer.zero_grad()
            value = float(accelerator.reduce(loss.detach(), "mean"))
            if not math.isfinite(value):
                raise JettisonError(f"the loss is {value} at step {step}: {plan.advice}")
            last = step + 1 == plan.steps
            judged = judge is not None and (last or (step + 1) % judge.every == 0)
            if judged:
                run.judge(judge.score())
            if accelerator.is_main_process:
                record(step, value)
                if judged or last or time.monotonic() - saved >= save_every:
                    run.save(step + 1)
                    saved = time.monotonic()
            progress.advance(note=f"{loss_name} {value:.4f}{run.note}")
    accelerator.wait_for_everyone()
    return run.result()


def make_accelerator() -> Accelerator:
    """Make an accelerator that uses a GPU if there is one."""
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[settings])


class _Run:
    """The state of a training, with the parameters that had the best score so far."""

    def __init__(
        self,
        path: Path,
        trained: dict[str, nn.Parameter],
        buffers: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ):
        self.path, self.trained, self.buffers, self.optimizer = path, trained, buffers, optimizer
        self.score: float | None = None
        self.best: dict[str, torch.Tensor] = {}

    @property
    def note(self) -> str:
        """The best score so far, for the progress bar."""
        return "" if self.score is None else f", best {self.score:.4f}"

    def _current(self) -> dict[str, torch.Tensor]:
        """Return copies of the current parameters and buffers on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in (self.trained | self.buffers).items()}

    def judge(self, score: float) -> None:
        """Keep the current parameters if their score is the best so far."""
        if self.score is None or score > self.score:
            self.score, self.best = score, self._current()

    def result(self) -> dict[str, torch.Tensor]:
        """Return the best parameters and buffers, or the current ones if none were judged."""
        return self.best or self._current()

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps to the file."""
        tensors = dict(self.buffers)
        for name, parameter in self.trained.items():
            tensors[name] = parameter
            if state := self.optimizer.state.get(parameter):  # a parameter that had no gradient yet has none
                tensors |= {f"{name}/first": state["exp_avg"], f"{name}/second": state["exp_avg_sq"]}
                tensors[f"{name}/steps"] = state["step"]
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        best = {} if self.score is None else {"best": repr(self.score)}
        write_sealed(self.path, tensors, {"step": str(step)} | best)

    def resume(self) -> int:
        """Load the state from the file, if there is one. Returns the number of steps that are done."""
        if not self.path.exists():
            return 0
        stored = read_sealed(self.path)
        if stored is None:
            say(f"note: {self.path} is damaged, so training starts again")
            return 0
        tensors, metadata = stored
        step = int(metadata["step"])
        for name, parameter in self.trained.items():
            parameter.data.copy_(tensors[name])
            if f"{name}/first" in tensors:
                self.optimizer.state[parameter] = {
                    "step": tensors.get(f"{name}/steps", torch.tensor(float(step))),
                    "exp_avg": tensors[f"{name}/first"].to(parameter.device),
                    "exp_avg_sq": tensors[f"{name}/second"].to(parameter.device),
                }
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[name])
        if "best" in metadata:
            self.score = float(metadata["best"])
            self.best = {name: tensors[f"best/{name}"] for name in self.trained | self.buffers}
        return step


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step as a share of its peak: it rises linearly, then follows a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def sample_indices(step: int, batch: int, count: int, seed: int) -> torch.Tensor:
    """Return the indices of the samples that a step uses, (batch,), from 0 to ``count`` - 1.

    Every epoch is a new order of all samples, which depends only on the seed and the epoch.
    """
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        indices.append(int(_order(seed, position // count, count)[position % count]))
    return torch.tensor(indices)


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """Return the order of the samples in an epoch, (count,). Only the last order is cached."""
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        _orders[key] = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return _orders[key]
