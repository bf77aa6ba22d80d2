"""Benchmark a checkpoint, or a known shape with random weights, against the read limit of this machine."""

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
WRITTEN = 96  # tokens written after every prompt when a draft is timed


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
    """Time decoding and reading prompts, with a checkpoint or with random weights of a shape.

    folder: the checkpoint.
    shape: name of a model shape; its random weights are packed by ``recipes``, with ``changes`` to the recipes.
    contexts: numbers of earlier tokens at which decoding is timed.
    against: ``llama.cpp``, whose own benchmark then takes turns with ours.
    rounds: samples of every measurement.

    Returns the result of ``measure_decoding``, and ``prompts``, that of ``measure_prefill``.
    Raises UsageError unless exactly one of folder and shape is set, for another peer, and for contexts longer than the
    model's positions.
    """
    if (folder is None) == (shape is None):
        raise UsageError("benchmark a checkpoint or a --shape: exactly one of them is needed")
    if against not in (None, "llama.cpp"):
        raise UsageError(f"against = {against!r}: it must be llama.cpp")
    check_decoding(contexts, rounds)
    loaded_recipes: Mapping = {recipe: load_recipe(recipe, changes) for recipe in recipes}
    source = open_shape(folder or shape)
    source.check_window(max(contexts) + STEPS, f"{max(contexts)} tokens of context and {STEPS} more")
    if against and not cache_is_kept():
        raise JettisonError("llama.cpp's files take gigabytes and need a cache folder: set $JETTISON_CACHE to one")
    others = llama_cpp(source, cache_folder() / "gguf", native.threads()) if against else {}
    if folder:
        models = {Path(folder).name: load(folder).model}
    else:
        models = {name: random_model(source, recipe) for name, recipe in loaded_recipes.items()}
    prompts = measure_prefill(models, tokens=source.window(PROMPT), rounds=min(3, rounds), others=others)
    return measure_decoding(models, contexts=contexts, rounds=rounds, others=others) | {"prompts": prompts}


def bench_draft(folder: str | Path, draft: str = "auto") -> dict[str, Any]:
    """Measure the speedup of a checkpoint by a draft, on texts that continue beginnings of books.

    draft: ``auto`` (the draft that ``jettison draft`` chose) or ``lookup``.
    Returns ``draft`` (None if none pays), ``times_as_fast`` and, for the last text, ``acceptance_rate`` and
    ``tokens_per_step``.
    Raises UsageError for another draft.
    """
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
