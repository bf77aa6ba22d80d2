"""Measures the perplexity of a language model, and its distance from another one, on a text."""

import math
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.core.progress import bar
from jettison.domains.domain import Logits

BATCH = 4  # windows


@torch.no_grad()
def compare(
    student: Logits, original: Logits | None, windows: torch.Tensor, name: str, keep: bool = False
) -> dict[str, Any]:
    """Measure the perplexity of ``student``, and its distance from ``original``, on windows of a text.

    Every token of a window except the first is predicted.

    windows: token ids (windows, length).
    name: of the text.
    keep: whether to return also the log-perplexity of every window.
    Returns log_perplexity in nats per token, perplexity, tokens (how many were predicted), and with an original kl in
    nats per token and agreement, the share of positions where both models predict the same token.
    Raises JettisonError if the outputs are not finite.
    """
    divergence = agreement = 0.0
    losses: list[float] = []  # per window, in nats
    with bar("evaluate", len(windows)) as progress:
        for ids in windows.split(BATCH):
            guess = student(ids)[:, :-1].float().log_softmax(-1)  # (batch, length-1, vocabulary)
            labels = ids[:, 1:].to(guess.device)  # (batch, length-1)
            losses += (-guess.gather(-1, labels.unsqueeze(-1)).sum((1, 2), dtype=torch.float64)).tolist()
            if original:
                target = original(ids)[:, :-1].float().log_softmax(-1)
                divergence += float((target.exp() * (target - guess)).sum(dtype=torch.float64))
                agreement += int((target.argmax(-1) == guess.argmax(-1)).sum())
            progress.advance(len(ids), note=name)
    loss, count = math.fsum(losses), windows.shape[0] * (windows.shape[1] - 1)
    if not math.isfinite(loss):
        raise JettisonError(f"log-perplexity on {name} is {loss / count}: the model's outputs are not finite")
    measured = {"log_perplexity": round(loss / count, 6), "perplexity": round(math.exp(min(loss / count, 700)), 4)}
    if original:
        measured |= {"kl": round(divergence / count, 6), "agreement": round(agreement / count, 6)}
    if keep:
        measured["windows"] = [round(nats * len(losses) / count, 6) for nats in losses]
    return measured | {"tokens": count}
