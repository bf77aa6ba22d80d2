"""Losses for distillation: of logits, in chunks so that those of a whole batch are never in memory, and of features."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

LOGITS_AT_ONCE = 1 << 24  # the number of logits in a chunk
Head = Callable[[torch.Tensor], torch.Tensor]


def head_of(model: nn.Module) -> Head:
    """Return the function from a model's last hidden states (..., hidden) to its logits (..., vocabulary).

    It includes what some families do after the linear: Gemma's soft cap, Granite's divisor.
    """
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        return lambda hidden: torch.tanh(linear(hidden) / cap) * cap
    if divisor := getattr(config, "logits_scaling", None):
        return lambda hidden: linear(hidden) / divisor
    return linear


def chunked_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    student_head: Head,
    teacher_head: Head,
    parameters: list[nn.Parameter],
    vocabulary: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return the mean over tokens of τ² KL(teacher ‖ student), over the full vocabulary.

    student, teacher: (tokens, hidden), the last hidden states.
    student_head, teacher_head: see ``head_of``.
    parameters: the parameters of the student's head that are trained.
    temperature: τ.

    Memory: LOGITS_AT_ONCE logits each of student and teacher. The gradient of a chunk is computed in the forward pass,
    and only the sum over chunks is kept.
    """
    chunk = max(1, LOGITS_AT_ONCE // vocabulary)
    return _ChunkedKL.apply(student, teacher, student_head, teacher_head, temperature, chunk, *parameters)


def kl(teacher_logits: torch.Tensor, student_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the sum over tokens of τ² KL(teacher ‖ student), in float32. Logits: (..., vocabulary)."""
    target = (teacher_logits.float() / temperature).log_softmax(-1)
    guess = (student_logits.float() / temperature).log_softmax(-1)
    return (target.exp() * (target - guess)).sum() * temperature**2


def square_head(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the SquareHead loss: the mean over blocks of ‖s − t‖² / ‖t‖².

    student, teacher: for every block, the states s and t, (windows, length, hidden).
    The division gives every block the same weight, however large its states are.
    Source: arXiv:2310.06927, section 2.
    """
    parts = [
        (s.float() - t.float()).square().mean() / t.float().square().mean().clamp(min=1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


class _ChunkedKL(torch.autograd.Function):
    """The function of ``chunked_kl``. ``forward`` already computes the gradients, for an incoming gradient of 1."""

    @staticmethod
    def forward(ctx, student, teacher, student_head, teacher_head, temperature, chunk, *parameters):
        total = torch.zeros((), device=student.device)
        hidden_gradient = torch.empty_like(student)
        parameter_gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(student), chunk):
            part = slice(start, start + chunk)
            with torch.no_grad():
                target = teacher_head(teacher[part])
            with torch.enable_grad():
                hidden = student[part].detach().requires_grad_()
                loss = kl(target, student_head(hidden), temperature)
                grads = torch.autograd.grad(loss, [hidden, *parameters])
            hidden_gradient[part] = grads[0]
            for total_gradient, new in zip(parameter_gradients, grads[1:], strict=True):
                total_gradient += new
            total += loss.detach()
        ctx.save_for_backward(hidden_gradient, *parameter_gradients)
        ctx.tokens = len(student)
        return total / len(student)

    @staticmethod
    def backward(ctx, grad):
        hidden_gradient, *parameter_gradients = ctx.saved_tensors
        share = grad / ctx.tokens  # the loss is the mean over tokens
        return (
            hidden_gradient * share, None, None, None, None, None, *(value * share for value in parameter_gradients)
        )  # fmt: skip
