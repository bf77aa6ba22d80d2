"""``evaluate``: measure the quality of a checkpoint or any model, and its distance from the original."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.domains.domain import Domain, Sources, find_domain
from jettison.formats.manifest import NAME, read_manifest
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.pipeline.size import measure_size
from jettison.runtime.load import load

TEXTS = ("books-evaluation", "wikitext2")
TOKENS = 30_720


def evaluate(
    model: str | Path,
    *,
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    window: int | None = None,
    teacher: str | Path | None = None,
    adapter: bool = True,
    windows: bool = False,
    images: str | Path | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint or any model: a language model on texts, an image classifier on images.

    texts: bundled names or UTF-8 files.
    tokens: how many tokens of each text are read; None reads all.
    window: tokens per window; None means 512, or as many as the model has positions for.
    teacher: the original to measure distances from; by default the one that jettison.json names.
    adapter: load the LoRA adapter of the folder, if it has one.
    windows: also list the log-perplexity of each window, from which the standard error of a difference between two
    models can be computed.
    images: a folder of class subfolders, or a parquet file of images and labels.
    count: how many of the images are used; None uses all.

    Returns, for each text, log-perplexity (nats per token) and perplexity, and the distances from the original:
    KL(original ‖ model) in nats, and the share of positions where both have the same likeliest token. For images,
    accuracy, cross-entropy and the same distances. Without an original the distances are left out. ``teacher`` in the
    result names an original that is not the one that the checkpoint was made from.

    Raises UsageError for a window of fewer than 2 tokens or more than the model has positions for, fewer than 1 token,
    an original that has another vocabulary or other classes, or that has changed since the checkpoint was made from it.
    """
    source = ModelFolder(model)
    domain, sources = find_domain(source), Sources(tuple(texts), tokens, window, windows, images, count)
    domain.check_sources(source, sources)
    original, other_name = _find_original(source, teacher, domain)
    models = [source, original] if original else [source]  # both are in memory at once
    require_memory(sum(loaded.checkpoint.tensor_bytes for loaded in models), f"evaluating {source.name}")
    student = load(model, adapter=adapter)
    reference = load(original.folder) if original else None
    result: dict[str, Any] = {"size": measure_size(source.folder)}
    if other_name:
        result["teacher"] = other_name
    return result | domain.scores(source, student, reference, sources)


def _find_original(source: ModelFolder, teacher: str | Path | None, domain: Domain) -> tuple[ModelFolder | None, str]:
    """Find the model that distances are measured from.

    Returns the model, None if there is none; and its name if it is not the model that ``source`` was made from, else
    "". Raises UsageError if the original has changed since, or if ``teacher`` has another vocabulary.
    """
    recorded = read_manifest(source.folder)["teacher"] if (source.folder / NAME).exists() else None
    if teacher is None and recorded is None:
        return None, ""
    if teacher is None and not os.path.exists(recorded["folder"]):
        where = recorded["folder"]
        say(f"note: the original is not at {where} any more, so distances from it are left out; give it with --teacher")
        return None, ""
    original = ModelFolder(recorded["folder"] if teacher is None else teacher)
    domain.same_outputs(source, original)
    if recorded is None or original.fingerprint() == recorded["fingerprint"]:
        return original, ""
    if teacher is None:
        raise UsageError(
            f"{original.folder} has changed since {source.name} was made from it: put the original back, or name the "
            "model to measure distances from with --teacher"
        )
    say(f"note: distances are from {original.name}, which is not the model that {source.name} was made from")
    return original, original.name
