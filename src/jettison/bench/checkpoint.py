"""Speed of a checkpoint, or of a known shape with random weights, next to what this machine can read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.bench.decoding import PROMPT, STEPS, check_decoding, measure_decoding, measure_prefill
from jettison.bench.llama_cpp import llama_cpp
from jettison.bench.random_model import random_model
from jettison.core.caches import cache_folder, cache_is_kept
from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.graph.folder import open_shape
from jettison.kernels import native
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.choose import starts
from jettison.runtime.speculative.measure import compare_speed, write_ids

RECIPES, CONTEXTS, ROUNDS = ("gateup-w4w2",), (16, 512), 5
WRITTEN = 96  # tokens of each text with a draft


def bench_decode(
    folder: str | Path | None = None,
    *,
    shape: str | None = None,
    recipes: Sequence[str] = RECIPES,
    changes: Sequence[str] = (),
    contexts: Sequence[int] = CONTEXTS,
    against: str | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Time decoding and reading prompts with a checkpoint, or with a shape's random weights under ``recipes``.

    contexts: tokens that were there before. against: ``llama.cpp``, whose own benchmark takes turns with ours.
    Returns what ``measure_decoding`` does, and ``prompts``.

    Raises UsageError for neither or both of folder and shape, another peer, and contexts longer than the model's
    positions.
    """
    if (folder is None) == (shape is None):
        raise UsageError("bench a checkpoint or a --shape: one of them")
    if against not in (None, "llama.cpp"):
        raise UsageError(f"against = {against!r}: it can be llama.cpp")
    check_decoding(contexts, rounds)
    chosen: Mapping = {recipe: load_recipe(recipe, changes) for recipe in recipes}
    source = open_shape(folder or shape)
    source.check_window(max(contexts) + STEPS, f"{max(contexts)} tokens of context and {STEPS} more")
    if against and not cache_is_kept():
        raise JettisonError("llama.cpp's files of gigabytes need a cache folder: name one with $JETTISON_CACHE")
    others = llama_cpp(source, cache_folder() / "gguf", native.threads()) if against else {}
    if folder:
        models = {Path(folder).name: load(folder).model}
    else:
        models = {name: random_model(source, recipe) for name, recipe in chosen.items()}
    prompts = measure_prefill(models, tokens=source.window(PROMPT), rounds=min(3, rounds), others=others)
    return measure_decoding(models, contexts=contexts, rounds=rounds, others=others) | {"prompts": prompts}


def bench_draft(folder: str | Path, draft: str = "auto") -> dict[str, Any]:
    """How many times as fast a checkpoint writes with a draft, after beginnings of books, and what became of the draft
    tokens of the last text. draft: ``auto`` (of ``jettison draft``) or ``lookup``. Returns ``draft``, None where none
    pays."""
    if draft not in ("auto", "lookup"):
        raise unknown("draft", draft, ("auto", "lookup"))
    loaded = load(folder)
    chosen = loaded.find_draft(draft)
    if chosen is None:
        return {"draft": None}
    beginnings = starts(loaded, "books")
    speedup = compare_speed(loaded, [chosen], beginnings, WRITTEN, Sampling())[0]
    speculation = write_ids(loaded, beginnings[-1], WRITTEN, Sampling(), draft=chosen)[1].speculation
    rates = {"acceptance_rate": speculation.acceptance, "tokens_per_step": speculation.tokens_per_step}
    return {"draft": str(chosen), "times_as_fast": speedup} | rates
