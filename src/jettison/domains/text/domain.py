"""The domain of language models. They read token windows, and are scored by the tokens that they predict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.progress import say
from jettison.domains.domain import Ready, Sources
from jettison.domains.text.data import read_documents, text_digest, token_windows
from jettison.domains.text.lesson import Lesson
from jettison.domains.text.scores import compare
from jettison.domains.text.synthesize import synthesize
from jettison.graph.folder import ModelFolder
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import Labelled

DATA = "text"
EXAMPLE = 16  # tokens
WINDOW = 512  # default length of an evaluated window, in tokens
SYNTHETIC = "synthetic"  # name of the text that the original writes itself


def check_reader(source: ModelFolder) -> str:
    """Describe the tokenizer. Raises JettisonError if it has more tokens than the model."""
    known, room = len(source.tokenizer), source.vocabulary
    if known > room:
        raise JettisonError(f"it has {known} tokens, and the model has room for {room}")
    return f"a tokenizer of {known} tokens"


def example(source: ModelFolder) -> tuple[torch.Tensor, str]:
    """Return token ids (1, 16), spread over the vocabulary, and a description."""
    ids = torch.arange(EXAMPLE).unsqueeze(0) * max(1, source.vocabulary // EXAMPLE) % source.vocabulary
    return ids, f"{EXAMPLE} tokens"


def check_recipe(source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
    """Refuse images, and windows that are longer than the model can read. Raises UsageError."""
    if images := recipe.calibration.get("images"):
        raise UsageError(f"calibration.images = {images!r}: {source.name} is a language model, which reads text")
    if calibrated:
        source.check_window(recipe.calibration["length"], "calibration.length")
    for step in recipe.of("recover"):
        source.check_window(step.options["length"], "recover.length")


def calibration(source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
    """Return token ids (samples, length) for calibration, from a text or written by the model itself."""
    text, samples, length = (settings[name] for name in ("text", "samples", "length"))
    if text == SYNTHETIC:
        return synthesize(source, samples=samples, length=length, seed=seed)
    return token_windows(source, text, length, samples)


def calibration_digest(settings: Mapping[str, Any]) -> str | None:
    """Return 16 hex digits of the content of the calibration text; None for synthetic text."""
    return None if settings["text"] == SYNTHETIC else text_digest(settings["text"])


def check_sources(source: ModelFolder, sources: Sources) -> None:
    """Check texts, window and token count of an evaluation. Raises UsageError, also for images."""
    window = source.window(WINDOW) if sources.window is None else sources.window
    if sources.images or sources.count is not None:
        raise UsageError(f"{source.name} is a language model: it is measured on texts, not on images (images, count)")
    if window < 2:
        raise UsageError(f"window = {window}: every token but the first is predicted, so at least 2 are needed")
    check_tokens(sources.tokens)
    source.check_window(window, "window")
    for text in sources.texts:
        read_documents(text)


def contents(sources: Sources) -> dict[str, str]:
    """Return text -> 16 hex digits of its content."""
    return {str(text): text_digest(text) for text in sources.texts}


def check_tokens(tokens: int | None) -> None:
    """Check a number of tokens per text. Raises UsageError if it is below 1."""
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens = {tokens}: 1 or more of each text are needed, or None for all of it")


def same_outputs(source: ModelFolder, original: ModelFolder) -> None:
    """Raise UsageError if the two models differ in vocabulary size."""
    sizes = [model.config.get_text_config().vocab_size for model in (source, original)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"{original.name} has {sizes[1]} tokens and {source.name} {sizes[0]}: they cannot be compared")


def scores(source: ModelFolder, student: Ready, original: Ready | None, sources: Sources) -> dict[str, Any]:
    """Measure a model on every text, see ``compare``.

    Returns by text: log-perplexity in nats per token, perplexity, KL(original ‖ student), and the share of positions
    where both models predict the same token.
    """
    window = source.window(WINDOW) if sources.window is None else sources.window
    measured, reference = {}, original.logits if original else None
    for text in sources.texts:
        ids = text_windows(source, text, window, sources.tokens)
        measured[str(text)] = compare(student.logits, reference, ids, str(text), sources.windows)
    return {"texts": measured}


def text_windows(source: ModelFolder, text: str | Path, window: int, tokens: int | None) -> torch.Tensor:
    """Return token ids (windows, window) of a text: ``tokens`` in all, at least one window; None for the whole text."""
    return token_windows(source, text, window, None if tokens is None else max(1, tokens // window))


def training(source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
    """Return token ids (samples, length) from the step's ``data``: a text, or equal parts of several (``a+b``)."""
    source.check_window(step.options["length"], "recover.length")
    return training_windows(source, step.options, process, wait)


def training_windows(source: ModelFolder, options: Mapping[str, Any], process: tuple[int, int], wait) -> torch.Tensor:
    """Return token ids (samples, length), see ``training``."""
    texts = options["data"].split("+")
    share = -(-options["samples"] // len(texts))  # of each text, rounded up
    parts = []
    for text in texts:
        if text == SYNTHETIC:
            settings = {"length": options["length"], "seed": options["seed"], "process": process, "wait": wait}
            parts.append(synthesize(source, samples=share, temperatures=options["text_temperatures"], **settings))
        else:
            parts.append(token_windows(source, text, options["length"], share))
    if len(parts) == 1 and len(parts[0]) < share:
        say(f"note: {options['data']} has {len(parts[0])} windows of {options['length']} tokens, not {share}")
    if len(parts) > 1:  # windows of a text that is too short are repeated
        parts = [part[torch.arange(share) % len(part)] for part in parts]
    return torch.cat(parts)


def training_digests(recipe: Recipe, step: Step) -> dict[str, str]:
    """Return text -> 16 hex digits of its content, for the texts of a step, without synthetic text."""
    return {text: text_digest(text) for text in step.options["data"].split("+") if text != SYNTHETIC}


def labelled(source: ModelFolder, recipe: Recipe) -> Labelled:
    """Raise UsageError: depth pruning by training is for image classifiers."""
    raise UsageError(
        f"{source.name} is a language model: depth is pruned in image classifiers only; `jettison draft` skips blocks"
    )


def lesson(
    student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float, features: float
) -> nn.Module:
    """Return a ``Lesson``."""
    return Lesson(student, teacher, trained, temperature, features)
