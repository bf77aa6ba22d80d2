"""Language models: they read token windows, and are judged by the tokens that they predict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.progress import say
from jettison.domains.domain import Logits, Sources
from jettison.domains.text.data import read_documents, text_digest, token_windows
from jettison.domains.text.lesson import Lesson
from jettison.domains.text.scores import compare
from jettison.domains.text.synthesize import synthesize
from jettison.graph.folder import ModelFolder
from jettison.recipe.recipe import Recipe, Step

DATA = "text"
EXAMPLE = 16  # tokens
WINDOW = 512  # tokens that are scored at once, where nothing else is said
SYNTHETIC = "synthetic"  # text that the original writes


def check_reader(source: ModelFolder) -> str:
    known, room = len(source.tokenizer), source.vocabulary
    if known > room:
        raise JettisonError(f"it has {known} tokens, and the model room for {room}")
    return f"a tokenizer of {known} tokens"


def example(source: ModelFolder) -> tuple[torch.Tensor, str]:
    """(1, 16) token ids from all over the vocabulary."""
    ids = torch.arange(EXAMPLE).unsqueeze(0) * max(1, source.vocabulary // EXAMPLE) % source.vocabulary
    return ids, f"{EXAMPLE} tokens"


def check_recipe(source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
    if images := recipe.calibration.get("images"):
        raise UsageError(f"calibration.images = {images!r}: {source.name} is a language model, which reads text")
    if calibrated:
        source.check_window(recipe.calibration["length"], "calibration.length")
    for step in recipe.of("recover"):
        source.check_window(step.options["length"], "recover.length")


def calibration(source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
    """(samples, length) token ids."""
    text, samples, length = (settings[name] for name in ("text", "samples", "length"))
    if text == SYNTHETIC:
        return synthesize(source, samples=samples, length=length, seed=seed)
    return token_windows(source, text, length, samples)


def calibration_digest(settings: Mapping[str, Any]) -> str | None:
    return None if settings["text"] == SYNTHETIC else text_digest(settings["text"])


def check_sources(source: ModelFolder, sources: Sources) -> None:
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
    return {str(text): text_digest(text) for text in sources.texts}


def check_tokens(tokens: int | None) -> None:
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens = {tokens}: 1 or more of each text are needed, or None for all of it")


def same_outputs(source: ModelFolder, original: ModelFolder) -> None:
    sizes = [each.config.get_text_config().vocab_size for each in (source, original)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"{original.name} has {sizes[1]} tokens and {source.name} {sizes[0]}: no distance between")


def scores(source: ModelFolder, student: Logits, original: Logits | None, sources: Sources) -> dict[str, Any]:
    """By text: log-perplexity in nats per token, perplexity, KL(original ‖ student) and the share of tokens whose
    likeliest is the same, see ``compare``."""
    window = source.window(WINDOW) if sources.window is None else sources.window
    found = {}
    for text in sources.texts:
        ids = text_windows(source, text, window, sources.tokens)
        found[str(text)] = compare(student, original, ids, str(text), sources.windows)
    return {"texts": found}


def text_windows(source: ModelFolder, text: str | Path, window: int, tokens: int | None) -> torch.Tensor:
    """(windows, window) ids: ``tokens`` in all, but one window at least; None: the whole text."""
    return token_windows(source, text, window, None if tokens is None else max(1, tokens // window))


def training(source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
    """(samples, length) token ids from the step's ``data``: a text, or a mix of several in equal parts."""
    source.check_window(step.options["length"], "recover.length")
    return training_windows(source, step.options, process, wait)


def training_windows(source: ModelFolder, options: Mapping[str, Any], process: tuple[int, int], wait) -> torch.Tensor:
    """(samples, length) token ids, see ``training``."""
    texts = options["data"].split("+")
    share = -(-options["samples"] // len(texts))
    parts = []
    for text in texts:
        if text == SYNTHETIC:
            settings = {"length": options["length"], "seed": options["seed"], "process": process, "wait": wait}
            parts.append(synthesize(source, samples=share, temperatures=options["text_temperatures"], **settings))
        else:
            parts.append(token_windows(source, text, options["length"], share))
    if len(parts) == 1 and len(parts[0]) < share:
        say(f"note: {options['data']} has {len(parts[0])} windows of {options['length']} tokens, not {share}")
    if len(parts) > 1:  # a text that is shorter than its part is repeated
        parts = [part[torch.arange(share) % len(part)] for part in parts]
    return torch.cat(parts)


def training_digests(recipe: Recipe, step: Step) -> dict[str, str]:
    return {text: text_digest(text) for text in step.options["data"].split("+") if text != SYNTHETIC}


def lesson(
    student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float, features: float
) -> nn.Module:
    return Lesson(student, teacher, trained, temperature, features)
