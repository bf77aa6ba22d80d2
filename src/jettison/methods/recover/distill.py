"""Recover-LoRA: a compressed student learns its teacher's logits, on text that the teacher wrote."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from jettison.core.errors import JettisonError
from jettison.core.numbers import LAST_SEED
from jettison.core.progress import bar, say, waiting
from jettison.core.sealed import read_sealed, write_sealed
from jettison.graph.anatomy import Linear
from jettison.graph.dense import has_fast_bfloat16
from jettison.recipe.registry import recoverer
from jettison.statistics.stats import watch
from jettison.training.losses import chunked_kl, head_of, kl, square_head
from jettison.training.trainables import add_lora, train_scales, train_weights

STATS_WINDOWS = 64
WEIGHT_DECAY, BETAS, CLIP = 0.0, (0.9, 0.95), 1.0


@dataclass
class Pupil:
    """What a recovery works on. ``linears``: where it may act; ``quantized``: all linears whose scales can be trained;
    ``dense``: those whose weights can.

    state: the file that holds the training so far. save_every: seconds between saves.
    """

    student: nn.Module
    teacher: nn.Module
    linears: list[Linear]
    quantized: list[Linear]
    windows: torch.Tensor
    state: Path
    save_every: float
    record: Callable[[int, float], None]
    dense: list[Linear] = field(default_factory=list)


@recoverer("distill", paper="arXiv:2606.04238; arXiv:2510.08600")
def distill(
    pupil: Pupil,
    *,
    train: Annotated[list[Literal["lora", "scales", "weights"]], Field(min_length=1)] = ["lora"],  # noqa: B006 (a schema, never changed)
    rank: Annotated[int, Field(ge=1, le=8192)] = 8,
    alpha: Annotated[float, Field(gt=0)] | None = None,
    init: Literal["default", "olora", "svd"] = "default",
    data: str = "synthetic",
    text_temperatures: Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], Field(min_length=1)] = [1.0, 1.5],  # noqa: B006
    samples: Annotated[int, Field(ge=1)] = 10_000,
    length: Annotated[int, Field(ge=16)] = 512,
    epochs: Annotated[float, Field(gt=0)] = 1.0,
    batch: Annotated[int, Field(ge=1)] = 16,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    scale_lr: Annotated[float, Field(gt=0)] = 1e-3,
    weight_lr: Annotated[float, Field(gt=0)] = 1e-4,
    masked: bool = True,
    features: Annotated[float, Field(ge=0)] = 0.0,
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03,
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0,
    gradient_checkpointing: bool = False,
    seed: Annotated[int, Field(ge=0, le=LAST_SEED)] = 0,
) -> dict[str, torch.Tensor]:
    """Minimize KL(teacher ‖ student) over all tokens and the full vocabulary; returns what was trained, by name.

    train: ``lora`` (LoRA adapters on the linears of the step's ``where``; rank, alpha (default 2·rank), init as in
    ``add_lora``), ``scales`` (of every quantized linear, wherever: they cost nothing when run), ``weights`` (of the
    step's linears that are not packed; what pruning made zero stays zero if ``masked``), or several of them.
    data: ``synthetic`` (see ``synthesize``; its batches are sampled at ``text_temperatures`` in turn), a bundled text,
    a file, or a mix such as ``synthetic+books`` in equal parts. ``samples`` windows of ``length`` tokens are gone
    through ``epochs`` times, ``batch`` windows a step, over all processes. AdamW with cosine decay after a warm-up of
    that share of the steps; lr is for LoRA adapters, scale_lr for the logarithm of scales, weight_lr for weights.
    features: how much of SquareHead's loss on the blocks' outputs is added.

    The published setting leaves rank, learning rate, schedule and temperature open: these are our reconstruction.
    """
    alpha = alpha or 2.0 * rank
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    student, teacher = pupil.student.requires_grad_(False), pupil.teacher.requires_grad_(False)
    _check_head(teacher, pupil.windows[:1, :16])
    lora: dict[str, nn.Parameter] = {}
    if "lora" in train:
        stats = _input_stats(teacher, pupil) if init == "svd" else {}
        lora = add_lora(student, teacher, pupil.linears, rank, alpha, init, seed, stats)
    gains = train_scales(student, pupil.quantized) if "scales" in train else {}
    weights = train_weights(student, pupil.dense, masked) if "weights" in train else {}
    trained = lora | gains | weights
    if gradient_checkpointing:
        enable = getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        for module in student.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # itself only: what is inside stays without dropout

    optimizer = torch.optim.AdamW(
        [
            {"params": list(group.values()), "lr": rate, "peak": rate}
            for group, rate in ((lora, lr), (gains, scale_lr), (weights, weight_lr))
            if group
        ],
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
    )
    teacher.to(accelerator.device)
    lesson, optimizer = accelerator.prepare(_Lesson(student, teacher, trained, temperature, features), optimizer)
    steps = max(1, math.ceil(len(pupil.windows) * epochs / batch))
    done = _load_state(pupil.state, trained, optimizer)
    saved = time.monotonic()
    with bar("recover", steps, done) as progress:
        for step in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(step, steps, warmup)
            rows = _rows(step, batch, len(pupil.windows), seed)
            mine = rows[accelerator.process_index :: accelerator.num_processes]
            loss = lesson(pupil.windows[mine].to(accelerator.device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.values(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            value = float(accelerator.reduce(loss.detach(), "mean"))
            if not math.isfinite(value):
                raise JettisonError(
                    f"the loss is {value} at step {step}: lower {_rates(train, lr, scale_lr, weight_lr)}"
                )
            if accelerator.is_main_process:
                pupil.record(step, value)
                if time.monotonic() - saved >= pupil.save_every or step + 1 == steps:
                    _save_state(pupil.state, trained, optimizer, step + 1)
                    saved = time.monotonic()
            progress.advance(note=f"{'loss' if features else 'KL'} {value:.4f}")
    accelerator.wait_for_everyone()
    return {name: parameter.detach().cpu() for name, parameter in trained.items()}


class _Lesson(nn.Module):
    """One batch to its loss. Only the student is a submodule, so that nobody trains or synchronizes the teacher."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        trained: dict[str, nn.Parameter],
        temperature: float,
        features: float,
    ):
        super().__init__()
        self.student, self._teacher, self._temperature, self._features = student, [teacher], temperature, features
        head = {id(parameter) for parameter in student.get_output_embeddings().parameters()}
        self._trained = list(trained.values())
        self._of_head = [parameter for parameter in trained.values() if id(parameter) in head]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (windows, length) -> mean KL per token."""
        teacher, fast = self._teacher[0], has_fast_bfloat16(ids.device)
        asked = {"use_cache": False, "output_hidden_states": bool(self._features)}
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=fast):
            with torch.no_grad():
                taught = teacher.base_model(ids, **asked)
            found = self.student.base_model(ids, **asked)
            target, guess = (each.last_hidden_state.flatten(0, 1) for each in (taught, found))
            heads = head_of(self.student), head_of(teacher)
            vocabulary = teacher.config.get_text_config().vocab_size
            loss = chunked_kl(guess, target, *heads, self._of_head, vocabulary, self._temperature)
            if self._features:
                loss = loss + self._features * square_head(found.hidden_states[1:], taught.hidden_states[1:])
        # Zero, not none, is the gradient of an expert that no token reached: optimizer and processes stay in step.
        return loss + 0.0 * sum(parameter.sum() for parameter in self._trained)


def _rates(train: list[str], lr: float, scale_lr: float, weight_lr: float) -> str:
    rates = {"lora": f"lr ({lr})", "scales": f"scale_lr ({scale_lr})", "weights": f"weight_lr ({weight_lr})"}
    return " or ".join(rates[each] for each in train)


def _schedule(step: int, steps: int, warmup: float) -> float:
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _rows(step: int, batch: int, count: int, seed: int) -> torch.Tensor:
    """Which windows a step uses: each epoch is a new order of all of them, from the seed and the epoch alone."""
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


@waiting("running the original")
@torch.no_grad()
def _input_stats(teacher: nn.Module, pupil: Pupil):
    with watch(teacher, "", pupil.linears) as watching:
        for part in pupil.windows[:STATS_WINDOWS].split(8):
            teacher.base_model(part, use_cache=False)
    return watching.stats


@torch.no_grad()
def _check_head(model: nn.Module, ids: torch.Tensor) -> None:
    """Raises JettisonError if the model does something to its logits that ``head_of`` does not know."""
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    gap = float(kl(model(ids, use_cache=False).logits, head_of(model)(hidden))) / ids.numel()
    if gap > 1e-3:
        raise JettisonError(f"{type(model).__name__} changes its logits after the head in a way that is not known here")


def _save_state(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors |= {name: parameter, f"{name}/first": state["exp_avg"], f"{name}/second": state["exp_avg_sq"]}
    write_sealed(path, tensors, {"step": str(step)})


def _load_state(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Take up the training that ``path`` holds, if it does; returns the number of steps done."""
    if not path.exists():
        return 0
    stored = read_sealed(path)
    if stored is None:
        say(f"note: {path} is damaged, so training starts again")
        return 0
    tensors, metadata = stored
    step = int(metadata["step"])
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"{name}/first"].to(parameter.device),
            "exp_avg_sq": tensors[f"{name}/second"].to(parameter.device),
        }
    return step
