"""Recover-LoRA: train a compressed student to match its teacher's logits, on text that the teacher wrote."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from jettison.core.numbers import LAST_SEED
from jettison.core.progress import waiting
from jettison.graph.skeleton import run_model
from jettison.recipe.registry import recoverer
from jettison.statistics.stats import watch
from jettison.training.loop import Group, Plan, make_accelerator
from jettison.training.loop import train as run_training
from jettison.training.pupil import Pupil
from jettison.training.trainables import add_lora, train_scales, train_weights

STATS_SAMPLES = 64  # samples for the calibration statistics of ``init: svd``
WEIGHT_DECAY, BETAS, CLIP = 0.0, (0.9, 0.95), 1.0


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
    """Minimize KL(teacher ‖ student) over all tokens and the full vocabulary, or over the classes of an image.

    AdamW with cosine decay after a warm-up.

    train: what is trained, one or several of
    ``lora``: LoRA adapters on the linears of the step's ``where``;
    ``scales``: the scales of all quantized linears, whatever ``where`` says, since they cost nothing at run time;
    ``weights``: the weights of the step's linears that are not packed.
    rank, alpha, init: of the LoRA adapters, see ``add_lora``; alpha None means 2 · rank.
    data: ``synthetic`` (text of the teacher, see ``synthesize``), a bundled text, a file, or a mix such as
    ``synthetic+books`` in equal parts.
    text_temperatures: batches of synthetic text are sampled at these temperatures in turn.
    samples, length: how many windows of the data, and tokens per window.
    epochs: how often all windows are used.
    batch: windows per step, over all processes.
    lr: of the LoRA adapters; scale_lr: of the logarithm of the scales; weight_lr: of the weights.
    masked: weights that pruning set to zero stay zero.
    features: weight of SquareHead's loss on the blocks' outputs, which is added; 0 for none.
    warmup: share of the steps in which the learning rate rises.
    temperature: of both models' logits in the loss.
    gradient_checkpointing: recompute activations in the backward pass, to save memory.

    Returns name -> trained tensor: ``.lora_a`` and ``.lora_b``, ``.gain`` (logarithm of a factor on a scale) or
    ``.weight``.

    The published setting does not give rank, learning rate, schedule and temperature: ours are a reconstruction.
    """
    alpha = alpha or 2.0 * rank
    accelerator = make_accelerator()
    student, teacher = pupil.student.requires_grad_(False), pupil.teacher.requires_grad_(False)
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
                module.training = True  # only this module, not its children, so that dropout stays off

    teacher.to(accelerator.device)
    plan = Plan(
        steps=max(1, math.ceil(len(pupil.inputs) * epochs / batch)),
        batch=batch,
        count=len(pupil.inputs),
        seed=seed,
        warmup=warmup,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        clip=CLIP,
        advice=f"lower {_rates(train, lr, scale_lr, weight_lr)}",
    )
    return run_training(
        pupil.lesson(student, teacher, trained, temperature, features),
        [Group(lora, lr), Group(gains, scale_lr), Group(weights, weight_lr)],
        lambda places, step: (pupil.inputs[places],),
        plan,
        pupil.state,
        save_every=pupil.save_every,
        record=pupil.record,
        name="recover",
        loss_name="loss" if features else "KL",
        accelerator=accelerator,
    )


def _rates(train: list[str], lr: float, scale_lr: float, weight_lr: float) -> str:
    """Name the learning rates in use, for advice on what to lower."""
    rates = {"lora": f"lr ({lr})", "scales": f"scale_lr ({scale_lr})", "weights": f"weight_lr ({weight_lr})"}
    return " or ".join(rates[kind] for kind in train)


@waiting("running the original")
@torch.no_grad()
def _input_stats(teacher: nn.Module, pupil: Pupil):
    """Collect the calibration statistics of the teacher's linears on the first 64 samples."""
    model = teacher.base_model if teacher.can_generate() else teacher  # skips the logits of a large vocabulary
    with watch(teacher, "", pupil.linears) as watching:
        for part in pupil.inputs[:STATS_SAMPLES].split(8):
            run_model(model, part)
    return watching.stats
