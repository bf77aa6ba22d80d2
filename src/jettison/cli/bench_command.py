"""The commands of ``jettison bench``: time operators, decoding and draft tokens."""

import re
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError

Rounds = Annotated[int, typer.Option("--rounds", help="Take this many rounds of samples; the medians are printed.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Time operators, decoding or draft tokens on this machine, and compare with its memory bandwidth.",
        epilog=common.example("jettison bench decode runs/mine --context 16 --context 4096"),
    )
    for function, *examples in (
        (ops, "jettison bench ops --rows 1 --rows 5 --json ops.json"),
        (decode, "jettison bench decode runs/mine --context 16 --context 4096",
         "jettison bench decode --shape qwen3-4b --recipe gateup-w4w2 --against llama.cpp"),
        (draft, "jettison bench draft runs/mine"),
    ):  # fmt: skip
        group.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(group, name="bench")


def ops(
    shape: Annotated[
        str, typer.Option("--shape", help="Use the matrices of this model: a known shape or a folder.")
    ] = "qwen3-4b",
    matrix: Annotated[
        list[str],
        typer.Option("--matrix", help="Use a weight matrix of this size, ROWSxCOLUMNS, not --shape's. Repeatable."),
    ] = (),
    bits: Annotated[list[int], typer.Option("--bits", help="Bits per weight: 2, 3, 4 or 8. Repeatable.")] = (4, 2),
    group_size: Annotated[int, typer.Option("--group-size", help="Number of weights that share a scale.")] = 128,
    rows: Annotated[
        list[int], typer.Option("--rows", help="Rows of the activations (tokens); 1 for decoding. Repeatable.")
    ] = (1,),
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="Time this library too: onnxruntime, int4pack, bfloat16. Repeatable."),
    ] = None,
    rounds: Rounds = 5,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Time matrix products with packed weights, and those of other libraries."""
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
    model: Annotated[str | None, typer.Argument(help="The checkpoint to decode with.")] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Decode with random weights of this model: a known shape, a folder or a hub id."),
    ] = None,
    recipe: Annotated[
        list[str], typer.Option("--recipe", help="Recipe by which the weights of --shape are packed. Repeatable.")
    ] = ("gateup-w4w2",),
    changes: common.Changes = (),
    context: Annotated[
        list[int], typer.Option("--context", help="Tokens in the cache before decoding starts. Repeatable.")
    ] = (
        16,
        512,
    ),
    against: Annotated[
        str | None,
        typer.Option("--against", help="Also run the benchmark of this program, with random weights: llama.cpp."),
    ] = None,
    rounds: Rounds = 5,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Time decoding and reading prompts, with a checkpoint or with random weights of a known shape."""
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
    model: Annotated[str, typer.Argument(help="The checkpoint that writes.")],
    draft: Annotated[
        str, typer.Option("--draft", help="Draft tokens: auto (what `jettison draft` chose) or lookup (earlier text).")
    ] = "auto",
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Measure how many times as fast a checkpoint writes with draft tokens as without."""
    from jettison.bench.checkpoint import bench_draft

    common.begin(quiet, json)
    result = bench_draft(model, draft)
    if result["draft"]:
        rate = f"in the last text {100 * result['acceptance_rate']:.0f} % accepted"
        line = f"{result['times_as_fast']:.2f} times as fast; {rate}, {result['tokens_per_step']:.2f} tokens per step"
        common.out.print(f"{result['draft']}: {line}", markup=False)
    common.finish(result, json)


def _finish(result: dict[str, Any], json) -> None:
    limit = f"reads at most {result['limit'] / 1e9:.1f} GB/s, {result['instruction_set']}, {result['threads']} threads"
    common.out.print(f"\n{limit}", style="dim", markup=False)
    for name, reason in result.get("missing", {}).items():
        common.out.print(f"{name} is left out: {reason}", style="dim", markup=False)
    common.finish(result, json)


def _parse(text: str) -> tuple[str, tuple[int, int]]:
    """Parse ROWSxCOLUMNS. Returns the text, as a name, and (rows, columns)."""
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError(f"--matrix {text!r}: it must be rows and columns of W, such as 9728x2560")
    return text, (int(match[1]), int(match[2]))
