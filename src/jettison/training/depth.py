"""What depth pruning trains: the supernet, blocks that fade out, and gates that choose blocks.

A ``DepthTask`` is what a method of the verb ``depth`` receives. The lessons map images with labels to a loss.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from jettison.core.errors import UsageError
from jettison.core.journal import Journal
from jettison.graph.dense import has_fast_bfloat16
from jettison.graph.residual import Residual
from jettison.graph.twin import MOMENTUM, Twin, batch_norms, install_twins, recalibrating, set_fades
from jettison.training.loop import Fetch, Group, Plan, make_accelerator, train
from jettison.training.losses import kl

DECAY = 0.05  # weight decay
SMOOTHING = 0.1  # of labels
Logits = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Genome = tuple[int, ...]  # a bit for every block: whether it is pruned


@dataclass(frozen=True)
class Labelled:
    """Inputs with labels, divided for training. For images: pixels (batch, channels, height, width), labels (batch).

    count: how many there are to train on.
    fetch: indices of samples from 0 to count - 1, and a step -> inputs and labels, augmented.
    calibration: inputs for the statistics of batch normalizations, in batches.
    validation: inputs and labels, in batches, of samples that are not trained on.
    """

    count: int
    fetch: Fetch
    calibration: Sequence[torch.Tensor]
    validation: Sequence[tuple[torch.Tensor, torch.Tensor]]

    @property
    def held_out(self) -> int:
        """The number of samples to validate on."""
        return sum(len(labels) for _, labels in self.validation)


@dataclass
class DepthTask:
    """The input of a method that prunes depth.

    model: in float32; it is trained and changed in place.
    residuals: its blocks that can be pruned.
    data: what it is trained and validated on.
    logits: runs a model on pixels.
    measure: name -> model, to name -> milliseconds for one image.
    folder: holds the states of the trainings.
    journal: of the run; a stage that is recorded there is not done again.
    """

    model: nn.Module
    residuals: Sequence[Residual]
    data: Labelled
    logits: Logits
    measure: Callable[[Mapping[str, nn.Module]], Mapping[str, float]]
    folder: Path
    journal: Journal
    seed: int = 0
    save_every: float = 60.0
    teacher: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.teacher = deepcopy(self.model).eval().requires_grad_(False)
        for norm in batch_norms(self.model):
            norm.momentum = MOMENTUM

    def steps(self, epochs: float, batch: int) -> int:
        """Return the number of steps of ``epochs`` passes over the images."""
        return max(1, round(epochs * self.data.count / batch))

    def train(
        self, stage: str, lesson: nn.Module, epochs: float, batch: int, rate: float,
        extra: Mapping[str, nn.Parameter] | None = None,
    ) -> None:  # fmt: skip
        """Train ``model`` by a lesson, and leave it in its trained state. A stage that was killed continues.

        extra: further parameters to train.
        """
        parameters = dict(self.model.named_parameters())
        plan = Plan(
            self.steps(epochs, batch), min(batch, self.data.count), self.data.count, self.seed, warmup=0.05,
            betas=(0.9, 0.999), weight_decay=DECAY, advice="lower the rate of the depth step",
        )  # fmt: skip

        def fetch(indices: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
            return *self.data.fetch(indices, number), torch.tensor(number)

        self.model.train()
        accelerator = make_accelerator()
        self.teacher.to(accelerator.device)
        trained = train(
            lesson, [Group(parameters | dict(extra or {}), rate)], fetch, plan, self.folder / f"{stage}.safetensors",
            buffers=dict(self.model.named_buffers()), save_every=self.save_every, name=stage,
            record=lambda number, loss: self._record(stage, number, plan.steps, loss), accelerator=accelerator,
        )  # fmt: skip
        with torch.no_grad():
            for name, value in (parameters | dict(extra or {}) | dict(self.model.named_buffers())).items():
                value.copy_(trained[name])
        self.model.eval()

    def _record(self, stage: str, step: int, steps: int, loss: float) -> None:
        """Add the loss of about a hundred steps of a stage to the journal."""
        if step % max(1, steps // 100) == 0 or step + 1 == steps:
            self.journal.add(training=stage, step=step, steps=steps, loss=round(loss, 5))

    def load_original(self) -> None:
        """Put the original's weights back into ``model``, where its parameters have the names of the original."""
        self.model.load_state_dict(self.teacher.state_dict(), strict=False)

    def accuracy(self, model: nn.Module | None = None, recalibrated: bool = True) -> float:
        """Return the share of the validation images that a model classifies correctly, see ``scores``."""
        return self.scores(model, recalibrated)["accuracy"]

    def scores(self, model: nn.Module | None = None, recalibrated: bool = True) -> dict[str, float]:
        """Return accuracy and loss (cross-entropy in nats) on the validation images, to the 6 digits of the journal.

        recalibrated: take the statistics of batch normalizations anew from the calibration images.
        """
        model = model or self.model
        if recalibrated:
            with recalibrating(model):
                for pixels in self.data.calibration:
                    self.logits(model, pixels)
        model.eval()
        with torch.no_grad():
            logits = torch.cat([self.logits(model, x).float().cpu() for x, _ in self.data.validation])
        labels = torch.cat([y for _, y in self.data.validation])
        accuracy = float((logits.argmax(-1) == labels).double().mean())
        return {"accuracy": round(accuracy, 6), "loss": round(float(cross_entropy(logits, labels)), 6)}


class Lesson(nn.Module):
    """Trains the model as it is. The forward pass of a lesson maps pixels, labels and the number of the step to a loss.

    logits: see ``DepthTask``.
    distill: the weight of the distance from the teacher's logits, 0 to 1; the rest is the labels'.
    """

    def __init__(self, task: DepthTask, distill: float):
        super().__init__()
        self.model, self._teacher, self._logits, self._distill = task.model, [task.teacher], task.logits, distill

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        return self.loss(pixels, labels)

    def run(self, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of a model, float32."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=has_fast_bfloat16(pixels.device)):
            return self._logits(model, pixels).float()

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of the model as it is set now."""
        guess = self.run(self.model, pixels)
        loss = (1 - self._distill) * cross_entropy(guess, labels, label_smoothing=SMOOTHING)
        if self._distill:
            with torch.no_grad():
                target = self.run(self._teacher[0], pixels)
            loss = loss + self._distill * kl(target, guess) / len(pixels)
        return loss


class SupernetLesson(Lesson):
    """Trains blocks and twins together: the whole model from labels, subnets from the whole model's logits.

    Each step runs the sandwich of arXiv:1903.05134: the whole model, ``middle`` random subnets, and the smallest one.
    The whole model teaches the others (in-place distillation).
    """

    def __init__(self, task: DepthTask, twins: Sequence[Twin], middle: int):
        super().__init__(task, 0.0)
        self._twins, self._middle, self._seed = list(twins), middle, task.seed

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the sandwich."""
        rng = torch.Generator().manual_seed(self._seed * 1_000_003 + int(step))
        number = len(self._twins)
        set_fades(self._twins, [0] * number)
        whole = self.run(self.model, pixels)
        losses = [cross_entropy(whole, labels, label_smoothing=SMOOTHING)]
        subnets = [torch.randint(2, (number,), generator=rng).tolist() for _ in range(self._middle)]
        for subnet in (*subnets, [1] * number):
            set_fades(self._twins, subnet)
            losses.append(kl(whole.detach(), self.run(self.model, pixels)) / len(pixels))
        return torch.stack(losses).mean()


class FadingLesson(Lesson):
    """Fades blocks out: the share of their twins rises from 0 to 1 in the first ``fade`` of the steps, then stays.

    fade: 0 removes the blocks at once.
    """

    def __init__(self, task: DepthTask, twins: Sequence[Twin], steps: int, fade: float, distill: float):
        super().__init__(task, distill)
        self._twins, self._fading = list(twins), round(steps * fade)

    def share(self, step: int) -> float:
        """Return the share of the twins at a step. It rises by a cosine."""
        if step >= self._fading:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * (step + 1) / (self._fading + 1)))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the loss at the share of this step."""
        set_fades(self._twins, [self.share(int(step))] * len(self._twins))
        return self.loss(pixels, labels)


class GateLesson(Lesson):
    """Learns a gate for every block: the ``blocks`` with the lowest gates are pruned, by a straight-through estimator.

    Source: arXiv:2206.00843 (DepthShrinker), whose masks stand on activations; here a gate stands on a block.
    """

    def __init__(self, task: DepthTask, twins: Sequence[Twin], blocks: int):
        super().__init__(task, 0.0)
        self._twins, self._blocks = list(twins), blocks
        self.gates = nn.Parameter(torch.zeros(len(twins)))

    @property
    def pruned(self) -> list[int]:
        """The numbers of the blocks with the lowest gates."""
        return sorted(self.gates.argsort(stable=True)[: self._blocks].tolist())

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the loss with the blocks of the lowest gates pruned."""
        soft = torch.sigmoid(-self.gates)  # (blocks,), the share of the twin
        hard = torch.zeros_like(soft)
        hard[self.pruned] = 1.0
        for twin, share in zip(self._twins, hard + soft - soft.detach(), strict=True):
            twin.fade = share
        return self.loss(pixels, labels)


def start_twins(task: DepthTask, kernel: int, chosen: Iterable[int] | None = None) -> list[Twin]:
    """Put twins into the model of a task: for all its blocks, or those with the numbers ``chosen``."""
    numbers = range(len(task.residuals)) if chosen is None else sorted(chosen)
    return install_twins(task.model, [task.residuals[number] for number in numbers], None if kernel < 0 else kernel)


@dataclass(frozen=True)
class Pruned:
    """What a method of the verb ``depth`` returns.

    twins: in the model; those with fade 1 are to be merged.
    blocks: the numbers of the blocks that were pruned, among the blocks that can be.
    dropped: whether the model passes by these blocks as a whole (``blocks.Passed``), so that nothing is to be merged.
    """

    twins: list[Twin]
    blocks: list[int]
    dropped: bool = False


def check_blocks(task: DepthTask, blocks: int, name: str) -> None:
    """Raise UsageError if a model has fewer blocks than shall be pruned."""
    if blocks > len(task.residuals):
        raise UsageError(f"{name} = {blocks}: the model has {len(task.residuals)} blocks that can be pruned")


def fade_out(
    task: DepthTask, chosen: Iterable[int], *, kernel: int, epochs: float, batch: int, rate: float, fade: float,
    distill: float,
) -> Pruned:  # fmt: skip
    """Train the original with some blocks fading out, see ``FadingLesson``; returns the pruned model.

    chosen: the numbers of the blocks.
    """
    chosen = sorted(chosen)
    task.load_original()
    twins = start_twins(task, kernel, chosen)
    lesson = FadingLesson(task, twins, task.steps(epochs, batch), fade, distill)
    task.train("progressive" if fade else "finetune", lesson, epochs, batch, rate)
    set_fades(twins, [1] * len(twins))
    return Pruned(twins, chosen)
