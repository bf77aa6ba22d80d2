"""Perplexity, and distance from the original: KL divergence and agreement on the likeliest token."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.progress import bar, say
from jettison.domains.text.data import token_windows
from jettison.formats.manifest import NAME, read_manifest
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.pipeline.size import measure_size
from jettison.runtime.load import Loaded, load

TEXTS = ("books-evaluation", "wikitext2")
TOKENS, WINDOW, BATCH = 30_720, 512, 4


def evaluate(
    model: str | Path,
    *,
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    window: int | None = None,
    teacher: str | Path | None = None,
    adapter: bool = True,
    windows: bool = False,
) -> dict[str, Any]:
    """Measure a checkpoint or any model.

    texts: bundled names or UTF-8 files, cut into windows of ``window`` tokens (None: 512, or as many as the model has
    positions for), ``tokens`` in all (None: everything).
    For each: log-perplexity in nats per token, perplexity, and against the original in nats and shares:
    KL(original ‖ model) and how often both have the same likeliest token. The original is the one that jettison.json
    names, or ``teacher``; without one the distances are left out. ``teacher`` in the result names an original that is
    not the one that the checkpoint was made from. windows: also list the log-perplexity of each window, from which the
    error of a difference between two models can be had.

    Raises UsageError for a window of fewer than 2 tokens or more than the model has positions for, fewer than 1 token,
    or an original that has another vocabulary, or that has changed since the checkpoint was made from it.
    """
    source = ModelFolder(model)
    window = source.window(WINDOW) if window is None else window
    if window < 2:
        raise UsageError(f"window = {window}: every token but the first is predicted, so at least 2 are needed")
    check_tokens(tokens)
    source.check_window(window, "window")
    original, other = _find_original(source, teacher)
    held = [source, original] if original else [source]
    require_memory(sum(each.checkpoint.tensor_bytes for each in held), f"evaluating {source.name}")
    student = load(model, adapter=adapter)
    reference = load(original.folder) if original else None
    result: dict[str, Any] = {"size": measure_size(source.folder), "texts": {}}
    if other:
        result["teacher"] = other
    for text in texts:
        ids = text_windows(source, text, window, tokens)
        result["texts"][str(text)] = compare(student, reference, ids, str(text), windows)
    return result


def text_windows(source: ModelFolder, text: str | Path, window: int, tokens: int | None) -> torch.Tensor:
    """(windows, window) ids: ``tokens`` in all, but one window at least; None: the whole text."""
    return token_windows(source, text, window, None if tokens is None else max(1, tokens // window))


def check_tokens(tokens: int | None) -> None:
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens = {tokens}: 1 or more of each text are needed, or None for all of it")


def _find_original(source: ModelFolder, teacher: str | Path | None) -> tuple[ModelFolder | None, str]:
    """The model that distances are measured from, and its name where it is not the one that ``source`` was made from.

    Raises UsageError if the original has changed since, or if ``teacher`` has another vocabulary.
    """
    recorded = read_manifest(source.folder)["teacher"] if (source.folder / NAME).exists() else None
    if teacher is None and recorded is None:
        return None, ""
    if teacher is None and not Path(recorded["folder"]).is_dir():
        where = recorded["folder"]
        say(f"note: the original is not at {where} any more, so distances from it are left out; give it with --teacher")
        return None, ""
    original = ModelFolder(recorded["folder"] if teacher is None else teacher)
    sizes = [each.config.get_text_config().vocab_size for each in (source, original)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"{original.name} has {sizes[1]} tokens and {source.name} {sizes[0]}: no distance between")
    if recorded is None or original.fingerprint() == recorded["fingerprint"]:
        return original, ""
    if teacher is None:
        raise UsageError(
            f"{original.folder} has changed since {source.name} was made from it: put the original back, or name the "
            "model to measure distances from with --teacher"
        )
    say(f"note: distances are from {original.name}, which is not the model that {source.name} was made from")
    return original, original.name


@torch.no_grad()
def compare(
    student: Loaded, reference: Loaded | None, windows: torch.Tensor, name: str, keep: bool = False
) -> dict[str, Any]:
    """windows: (n, length) of the text ``name``. Every token but the first of a window is predicted. keep: list the
    log-perplexities of the windows too."""
    divergence = agreement = 0.0
    losses: list[float] = []  # per window, in nats
    with bar("evaluate", len(windows)) as progress:
        for ids in windows.split(BATCH):
            guess = student.logits(ids)[:, :-1].float().log_softmax(-1)  # (batch, length-1, vocabulary)
            wanted = ids[:, 1:].to(guess.device)
            losses += (-guess.gather(-1, wanted.unsqueeze(-1)).sum((1, 2), dtype=torch.float64)).tolist()
            if reference:
                target = reference.logits(ids)[:, :-1].float().log_softmax(-1)
                divergence += float((target.exp() * (target - guess)).sum(dtype=torch.float64))
                agreement += int((target.argmax(-1) == guess.argmax(-1)).sum())
            progress.advance(len(ids), note=name)
    loss, count = math.fsum(losses), windows.shape[0] * (windows.shape[1] - 1)
    if not math.isfinite(loss):
        raise JettisonError(f"log-perplexity on {name} is {loss / count}: the model's outputs are not finite")
    measured = {"log_perplexity": round(loss / count, 6), "perplexity": round(math.exp(min(loss / count, 700)), 4)}
    if reference:
        measured |= {"kl": round(divergence / count, 6), "agreement": round(agreement / count, 6)}
    if keep:
        measured["windows"] = [round(each * len(losses) / count, 6) for each in losses]
    return measured | {"tokens": count}
