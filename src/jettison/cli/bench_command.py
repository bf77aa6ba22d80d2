"""jettison bench"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import JettisonError, UsageError, unknown

DRAFTS = ("none", "auto", "lookup")
DRAFTED = 96  # tokens of each text


def register(app: typer.Typer) -> None:
    examples = (
        "jettison bench runs/mine --context 16 --context 4096",
        "jettison bench --shape qwen3-4b --recipe gateup-w4w2 --against llama.cpp",
        "jettison bench ops --rows 1 --rows 5 --json ops.json",
    )
    app.command("bench", epilog=common.example(*examples))(bench)


def bench(
    what: Annotated[
        str | None,
        typer.Argument(help="A checkpoint to decode with, or ops: products with packed weights, and peers'."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="A known shape, a folder or a hub id: with random weights; of ops, whose."),
    ] = None,
    recipe: Annotated[
        list[str], typer.Option("--recipe", help="How a shape is packed (gateup-w4w2). Repeatable.")
    ] = (),
    changes: common.Changes = (),
    context: Annotated[list[int], typer.Option("--context", help="Tokens that were there before. Repeatable.")] = (
        16,
        512,
    ),
    matrix: Annotated[
        list[str], typer.Option("--matrix", help="ops: ROWSxCOLUMNS of W, not a shape's. Repeatable.")
    ] = (),
    bits: Annotated[list[int], typer.Option("--bits", help="ops: 2, 3, 4 or 8. Repeatable.")] = (4, 2),
    group_size: Annotated[int, typer.Option("--group-size", help="ops: weights that share a scale.")] = 128,
    rows: Annotated[list[int], typer.Option("--rows", help="ops: rows of x, 1 for decoding. Repeatable.")] = (1,),
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="ops: onnxruntime, int4pack, bfloat16. Repeatable.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="llama.cpp: also its own benchmark, with random weights.")
    ] = None,
    draft: Annotated[
        str,
        typer.Option("--draft", help="A checkpoint's texts with drafts: auto (of `jettison draft`), lookup, or none."),
    ] = "none",
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of samples; medians are printed.")] = 5,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Time decoding, or single operators, on this machine, next to what it can read."""
    common.begin(quiet, json)
    if draft not in DRAFTS:
        raise unknown("draft", draft, DRAFTS)
    if against not in (None, "llama.cpp"):
        raise UsageError(f"--against {against!r}: it can be llama.cpp")
    if what == "ops":
        result = _ops(shape or "qwen3-4b", matrix, bits, group_size, rows, peer, rounds)
    elif (what is None) == (shape is None):
        raise UsageError("bench a checkpoint, a --shape, or ops: one of them")
    elif shape and draft != "none":
        raise UsageError(f"--draft {draft} of a --shape: random weights write nothing that can be drafted")
    else:
        result = _decoding(what, shape, recipe or ["gateup-w4w2"], changes, context, against, rounds)
        if draft != "none":
            result["draft"] = _drafted(what, draft)
    said = f"reads {result['limit'] / 1e9:.1f} GB/s at most, {result['instruction_set']}, {result['threads']} threads"
    common.out.print(f"\n{said}", style="dim", markup=False)
    for name, reason in result.get("missing", {}).items():
        common.out.print(f"{name} is left out: {reason}", style="dim", markup=False)
    common.finish(result, json)


def _decoding(
    folder: str | None,
    shape: str | None,
    recipes: list[str],
    changes: list[str],
    contexts: list[int],
    against: str | None,
    rounds: int,
) -> dict[str, Any]:
    from jettison.bench.decoding import PROMPT, STEPS, check_decoding, measure_decoding, measure_prefill
    from jettison.bench.llama_cpp import llama_cpp
    from jettison.bench.random_model import random_model
    from jettison.core.caches import cache_folder, cache_is_kept
    from jettison.core.numbers import figures, format_rate
    from jettison.graph.folder import open_shape
    from jettison.kernels import native
    from jettison.recipe.recipe import load_recipe
    from jettison.runtime.load import load

    check_decoding(contexts, rounds)
    chosen = {recipe: load_recipe(recipe, changes) for recipe in recipes}
    source = open_shape(folder or shape)
    source.check_window(max(contexts) + STEPS, f"{max(contexts)} tokens of context and {STEPS} more")
    if against and not cache_is_kept():
        raise JettisonError("llama.cpp's files of gigabytes need a cache folder: name one with $JETTISON_CACHE")
    others = llama_cpp(source, cache_folder() / "gguf", native.threads()) if against else {}
    if folder:
        models = {Path(folder).name: load(folder).model}
    else:
        models = {name: random_model(source, recipe) for name, recipe in chosen.items()}
    prompt = source.window(PROMPT)
    prompts = measure_prefill(models, tokens=prompt, rounds=min(3, rounds), others=others)
    result = measure_decoding(models, contexts=contexts, rounds=rounds, others=others) | {"prompts": prompts}
    read = {row["model"]: format_rate(row["tokens_per_second"]) for row in prompts}
    printed = [
        [
            row["model"],
            read[row["model"]],
            str(row["context"]),
            format_rate(row["tokens_per_second"]),
            figures(result["bytes"][row["model"]] / 1e9),
            f"{row['share']:.2f}",
        ]
        for row in result["rows"]
    ]
    read_column = f"read {prompt},\ntokens/s"
    columns = ("model", read_column, "after", "wrote,\ntokens/s", "weights,\nGB", "of the\nlimit")
    common.table(*columns, rows=printed)
    return result


def _drafted(folder: str, name: str) -> dict[str, Any]:
    """How many times as fast texts are written with a draft, after beginnings of books."""
    from jettison.runtime.load import load
    from jettison.runtime.sampling import Sampling
    from jettison.runtime.speculative.choose import starts
    from jettison.runtime.speculative.measure import compare_speed

    loaded = load(folder)
    draft = loaded.find_draft(name)
    if draft is None:
        return {"draft": None}
    speedup = compare_speed(loaded, [draft], starts(loaded, "books"), DRAFTED, Sampling())[0]
    taken, per_step = loaded.speculation.acceptance, loaded.speculation.tokens_per_step
    said = f"{speedup:.2f} times as fast; of the last text {100 * taken:.0f} % taken, {per_step:.2f} tokens per step"
    common.out.print(f"\n{draft}: {said}", markup=False)
    return {"draft": str(draft), "times_as_fast": speedup, "acceptance_rate": taken, "tokens_per_step": per_step}


def _ops(
    shape: str,
    matrix: list[str],
    bits: list[int],
    group_size: int,
    rows: list[int],
    peer: list[str] | None,
    rounds: int,
) -> dict[str, Any]:
    from jettison.bench.operators import linear_shapes, measure_operators
    from jettison.bench.peers import PEERS
    from jettison.graph.folder import open_shape

    shapes = dict(map(_parse, matrix)) or linear_shapes(open_shape(shape))
    peers = tuple(PEERS) if peer is None else peer
    result = measure_operators(shapes, bits=bits, group_size=group_size, counts=rows, peers=peers, rounds=rounds)
    printed = [
        [
            row["shape"],
            row["operator"],
            str(row["bits"]),
            str(row["rows"]),
            f"{row['microseconds']:.0f}",
            f"{row['bandwidth'] / 1e9:.1f}",
            f"{row['share']:.2f}",
        ]
        for row in result["rows"]
    ]
    columns = ("matrix", "operator", "bits", "rows", "µs", "GB/s", "of the limit")
    common.table(*columns, rows=printed, text=("operator",))
    return result


def _parse(text: str) -> tuple[str, tuple[int, int]]:
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError(f"--matrix {text!r}: it must be rows and columns of W, such as 9728x2560")
    return text, (int(found[1]), int(found[2]))
