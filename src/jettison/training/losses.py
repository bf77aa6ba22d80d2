"""Distillation of logits, without ever holding the logits of a whole batch; and of features."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

LOGITS_AT_ONCE = 1 << 24
Head = Callable[[torch.Tensor], torch.Tensor]


def head_of(model: nn.Module) -> Head:
    """(..., hidden) -> (..., vocabulary): what the model makes of its last hidden states.

    Knows what families do after the linear: Gemma's soft cap, Granite's divisor.
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
    """Mean over tokens of τ² KL(teacher ‖ student), over the full vocabulary.

    student, teacher: (tokens, hidden). parameters: what is trained inside the student's head. Memory: one chunk of
    LOGITS_AT_ONCE logits a side; the gradient of each chunk is taken at once and only its sum is kept.
    """
    chunk = max(1, LOGITS_AT_ONCE // vocabulary)
    return _ChunkedKL.apply(student, teacher, student_head, teacher_head, temperature, chunk, *parameters)


def kl(teacher_logits: torch.Tensor, student_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Sum over tokens of τ² KL(teacher ‖ student), in float32."""
    target = (teacher_logits.float() / temperature).log_softmax(-1)
    guess = (student_logits.float() / temperature).log_softmax(-1)
    return (target.exp() * (target - guess)).sum() * temperature**2


def square_head(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over blocks of ‖s − t‖² / ‖t‖², s and t being (windows, length, hidden) states: SquareHead
    (arXiv:2310.06927, section 2), which weighs every block alike however large its states are."""
    parts = [
        (s.float() - t.float()).square().mean() / t.float().square().mean().clamp(min=1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, student_head, teacher_head, temperature, chunk, *parameters):
        total = torch.zeros((), device=student.device)
        of_hidden = torch.empty_like(student)
        of_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(student), chunk):
            part = slice(start, start + chunk)
            with torch.no_grad():
                target = teacher_head(teacher[part])
            with torch.enable_grad():
                hidden = student[part].detach().requires_grad_()
                loss = kl(target, student_head(hidden), temperature)
                grads = torch.autograd.grad(loss, [hidden, *parameters])
            of_hidden[part] = grads[0]
            for kept, new in zip(of_parameters, grads[1:], strict=True):
                kept += new
            total += loss.detach()
        ctx.save_for_backward(of_hidden, *of_parameters)
        ctx.tokens = len(student)
        return total / len(student)

    @staticmethod
    def backward(ctx, grad):
        of_hidden, *of_parameters = ctx.saved_tensors
        share = grad / ctx.tokens
        return of_hidden * share, None, None, None, None, None, *(kept * share for kept in of_parameters)
