"""Quality, and distance from the original, of a checkpoint or any model."""

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

    texts: bundled names or UTF-8 files, cut into windows of ``window`` tokens (None: 512, or as many as the model has
    positions for), ``tokens`` in all (None: everything).
    For each: log-perplexity in nats per token, perplexity, and against the original in nats and shares:
    KL(original ‖ model) and how often both have the same likeliest token. The original is the one that jettison.json
    names, or ``teacher``; without one the distances are left out. ``teacher`` in the result names an original that is
    not the one that the checkpoint was made from. windows: also list the log-perplexity of each window, from which the
    error of a difference between two models can be had.
    images: a folder of class subfolders, or a parquet file of images and labels, of which ``count`` are taken (None:
    all): accuracy, cross-entropy, and the same distances.

    Raises UsageError for a window of fewer than 2 tokens or more than the model has positions for, fewer than 1 token,
    an original that has another vocabulary or other classes, or that has changed since the checkpoint was made from it.
    """
    source = ModelFolder(model)
    domain, sources = find_domain(source), Sources(tuple(texts), tokens, window, windows, images, count)
    domain.check_sources(source, sources)
    original, other = _find_original(source, teacher, domain)
    held = [source, original] if original else [source]
    require_memory(sum(each.checkpoint.tensor_bytes for each in held), f"evaluating {source.name}")
    student = load(model, adapter=adapter)
    reference = load(original.folder).logits if original else None
    result: dict[str, Any] = {"size": measure_size(source.folder)}
    if other:
        result["teacher"] = other
    return result | domain.scores(source, student.logits, reference, sources)


def _find_original(source: ModelFolder, teacher: str | Path | None, domain: Domain) -> tuple[ModelFolder | None, str]:
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
