"""jettison bench"""

import re
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError

Rounds = Annotated[int, typer.Option("--rounds", help="Rounds of samples; medians are printed.")]


def register(app: typer.Typer) -> None:
    room = typer.Typer(
        no_args_is_help=True,
        help="Time operators, decoding or drafts on this machine, next to what it can read.",
        epilog=common.example("jettison bench decode runs/mine --context 16 --context 4096"),
    )
    for function, *examples in (
        (ops, "jettison bench ops --rows 1 --rows 5 --json ops.json"),
        (decode, "jettison bench decode runs/mine --context 16 --context 4096",
         "jettison bench decode --shape qwen3-4b --recipe gateup-w4w2 --against llama.cpp"),
        (draft, "jettison bench draft runs/mine"),
    ):  # fmt: skip
        room.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(room, name="bench")


def ops(
    shape: Annotated[str, typer.Option("--shape", help="Whose matrices: a known shape or a folder.")] = "qwen3-4b",
    matrix: Annotated[list[str], typer.Option("--matrix", help="ROWSxCOLUMNS of W, not a shape's. Repeatable.")] = (),
    bits: Annotated[list[int], typer.Option("--bits", help="2, 3, 4 or 8. Repeatable.")] = (4, 2),
    group_size: Annotated[int, typer.Option("--group-size", help="Weights that share a scale.")] = 128,
    rows: Annotated[list[int], typer.Option("--rows", help="Rows of x, 1 for decoding. Repeatable.")] = (1,),
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="onnxruntime, int4pack, bfloat16. Repeatable.")
    ] = None,
    rounds: Rounds = 5,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Products with packed weights, and peers'."""
    from jettison.bench.operators import linear_shapes, measure_operators
    from jettison.bench.peers import PEERS
    from jettison.graph.folder import open_shape

    common.begin(quiet, json)
    shapes = dict(map(_parse, matrix)) or linear_shapes(open_shape(shape))
    peers = tuple(PEERS) if peer is None else peer
    result = measure_operators(shapes, bits=bits, group_size=group_size, counts=rows, peers=peers, rounds=rounds)
    printed = [
        [row["shape"], row["operator"], str(row["bits"]), str(row["rows"]), f"{row['microseconds']:.0f}",
         f"{row['bandwidth'] / 1e9:.1f}", f"{row['share']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    columns = ("matrix", "operator", "bits", "rows", "µs", "GB/s", "of the limit")
    common.table(*columns, rows=printed, text=("operator",))
    _finish(result, json)


def decode(
    model: Annotated[str | None, typer.Argument(help="A checkpoint to decode with.")] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", help="A known shape, a folder or a hub id: with random weights.")
    ] = None,
    recipe: Annotated[list[str], typer.Option("--recipe", help="How a shape is packed. Repeatable.")] = (
        "gateup-w4w2",
    ),
    changes: common.Changes = (),
    context: Annotated[list[int], typer.Option("--context", help="Tokens that were there before. Repeatable.")] = (
        16,
        512,
    ),
    against: Annotated[
        str | None, typer.Option("--against", help="llama.cpp: also its own benchmark, with random weights.")
    ] = None,
    rounds: Rounds = 5,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Decoding and reading prompts with a checkpoint, or with a shape's random weights."""
    from jettison.bench.checkpoint import bench_decode
    from jettison.core.numbers import figures, format_rate

    common.begin(quiet, json)
    result = bench_decode(
        model, shape=shape, recipes=recipe, changes=changes, contexts=context, against=against, rounds=rounds
    )
    read = {row["model"]: format_rate(row["tokens_per_second"]) for row in result["prompts"]}
    printed = [
        [row["model"], read[row["model"]], str(row["context"]), format_rate(row["tokens_per_second"]),
         figures(result["bytes"][row["model"]] / 1e9), f"{row['share']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    columns = ("model", "read,\ntokens/s", "after", "wrote,\ntokens/s", "weights,\nGB", "of the\nlimit")
    common.table(*columns, rows=printed)
    _finish(result, json)


def draft(
    model: Annotated[str, typer.Argument(help="A checkpoint that writes.")],
    draft: Annotated[str, typer.Option("--draft", help="auto (of `jettison draft`) or lookup.")] = "auto",
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """How many times as fast a checkpoint writes with draft tokens."""
    from jettison.bench.checkpoint import bench_draft

    common.begin(quiet, json)
    result = bench_draft(model, draft)
    if result["draft"]:
        taken = f"of the last text {100 * result['acceptance_rate']:.0f} % taken"
        said = f"{result['times_as_fast']:.2f} times as fast; {taken}, {result['tokens_per_step']:.2f} tokens per step"
        common.out.print(f"{result['draft']}: {said}", markup=False)
    common.finish(result, json)


def _finish(result: dict[str, Any], json) -> None:
    said = f"reads {result['limit'] / 1e9:.1f} GB/s at most, {result['instruction_set']}, {result['threads']} threads"
    common.out.print(f"\n{said}", style="dim", markup=False)
    for name, reason in result.get("missing", {}).items():
        common.out.print(f"{name} is left out: {reason}", style="dim", markup=False)
    common.finish(result, json)


def _parse(text: str) -> tuple[str, tuple[int, int]]:
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError(f"--matrix {text!r}: it must be rows and columns of W, such as 9728x2560")
    return text, (int(found[1]), int(found[2]))
