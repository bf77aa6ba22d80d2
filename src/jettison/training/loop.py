"""One loop for every training: AdamW on a cosine, over processes, saved and taken up again, with the same bytes.

- Batches follow from the seed and the step alone, so a run that was killed goes on as if it had not been.
- The state (parameters, both moments, buffers such as BatchNorm's, the best so far) is one sealed file.
- With a judge, the best parameters are what is returned, not the last.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from jettison.core.errors import JettisonError
from jettison.core.progress import bar, say
from jettison.core.sealed import read_sealed, write_sealed

Fetch = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]  # places of samples, step -> what the lesson is given


@dataclass(frozen=True)
class Group:
    """Parameters by name, and the highest learning rate that they have."""

    parameters: Mapping[str, nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Plan:
    """steps of ``batch`` samples each, over all processes, from ``count`` samples. warmup: share of the steps.
    advice: what to do where the loss is not finite."""

    steps: int
    batch: int
    count: int
    seed: int = 0
    warmup: float = 0.03
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    advice: str = "lower the learning rate"


@dataclass(frozen=True)
class Judge:
    """``score`` says how good the model is now, the more the better; it is asked every so many steps, and at the
    end."""

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
    """Minimize what ``lesson`` returns; returns parameters and buffers by name, on the CPU.

    lesson: a module from what ``fetch`` gives to a scalar loss. state: the file of the training so far; save_every:
    seconds between saves. buffers: tensors that the lesson changes in place. record: told the loss of every step, in
    the main process. Raises JettisonError for a loss that is not finite.
    """
    accelerator, buffers = accelerator or make_accelerator(), dict(buffers or {})
    groups = [group for group in groups if group.parameters]
    trained = {name: parameter for group in groups for name, parameter in group.parameters.items()}
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), "lr": group.rate, "peak": group.rate} for group in groups],
        betas=plan.betas,
        weight_decay=plan.weight_decay,
    )
    lesson, optimizer = accelerator.prepare(lesson, optimizer)
    run = _Run(state, trained, buffers, optimizer)
    done, saved = run.take_up(), time.monotonic()
    with bar(name, plan.steps, done) as progress, torch.random.fork_rng():
        for step in range(done, plan.steps):
            torch.manual_seed(plan.seed * 1_000_003 + step)  # dropout, where there is any
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, plan.steps, plan.warmup)
            places = rows(step, plan.batch, plan.count, plan.seed)
            mine = places[accelerator.process_index :: accelerator.num_processes]
            loss = lesson(*(each.to(accelerator.device) for each in fetch(mine, step)))
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
    """On a GPU where there is one."""
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[settings])


class _Run:
    """The state of a training. best: what was judged best, with its score."""

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
        return "" if self.score is None else f", best {self.score:.4f}"

    def _now(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in (self.trained | self.buffers).items()}

    def judge(self, score: float) -> None:
        if self.score is None or score > self.score:
            self.score, self.best = score, self._now()

    def result(self) -> dict[str, torch.Tensor]:
        return self.best or self._now()

    def save(self, step: int) -> None:
        tensors = dict(self.buffers)
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            tensors |= {name: parameter, f"{name}/first": state["exp_avg"], f"{name}/second": state["exp_avg_sq"]}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        best = {} if self.score is None else {"best": repr(self.score)}
        write_sealed(self.path, tensors, {"step": str(step)} | best)

    def take_up(self) -> int:
        """Take up the training that the file holds, if it does; returns the number of steps done."""
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
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
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
    """The share of the highest learning rate: a linear rise, then a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def rows(step: int, batch: int, count: int, seed: int) -> torch.Tensor:
    """(batch,) which of ``count`` samples a step uses: each epoch is a new order of all of them, from the seed and the
    epoch alone."""
    picked = []
    for place in range(step * batch, (step + 1) * batch):
        picked.append(int(_order(seed, place // count, count)[place % count]))
    return torch.tensor(picked)


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _order(seed: int, epoch: int, count: int) -> torch.Tensor:
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        _orders[key] = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return _orders[key]
