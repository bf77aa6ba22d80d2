"""jettison bench"""

import re
from typing import Annotated

import typer

from jettison.cli import common
from jettison.errors import UsageError


def register(app: typer.Typer) -> None:
    examples = ("jettison bench ops", "jettison bench ops --shape llama-3.1-8b --rows 1 --rows 5 --json ops.json")
    app.command("bench", epilog=common.example(*examples))(bench)


def bench(
    what: Annotated[str, typer.Argument(help="ops: products with packed weights, next to peers and the read limit.")],
    shape: Annotated[
        str,
        typer.Option("--shape", help="Whose matrices: a known shape such as qwen3-4b, a model folder, or a hub id."),
    ] = "qwen3-4b",
    matrix: Annotated[
        list[str], typer.Option("--matrix", help="ROWSxCOLUMNS of W instead of a model's. Repeatable.")
    ] = (),
    bits: Annotated[list[int], typer.Option("--bits", help="2, 3, 4 or 8. Repeatable.")] = (4, 2),
    group_size: Annotated[int, typer.Option("--group-size", help="Weights that share a scale.")] = 128,
    rows: Annotated[list[int], typer.Option("--rows", help="Rows of x, 1 for decoding. Repeatable.")] = (1,),
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="onnxruntime, int4pack, bfloat16. Repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of samples; medians are printed.")] = 7,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Time operators on this machine: `bench ops`, about a minute for each shape and number of rows."""
    from jettison.evaluate.operators import linear_shapes, measure_operators
    from jettison.evaluate.peers import PEERS
    from jettison.models import open_shape

    common.begin(quiet)
    if what != "ops":
        raise UsageError(f"bench {what!r}: there is `jettison bench ops`")
    shapes = dict(map(_parse, matrix)) or linear_shapes(open_shape(shape))
    result = measure_operators(
        shapes,
        bits=bits,
        group_size=group_size,
        counts=rows,
        peers=tuple(PEERS) if peer is None else peer,
        rounds=rounds,
    )
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
    said = f"reads {result['limit'] / 1e9:.1f} GB/s at most, {result['instruction_set']}, {result['threads']} threads"
    common.out.print(f"\n{said}", style="dim", markup=False)
    for name, reason in result["missing"].items():
        common.out.print(f"{name} is left out: {reason}", style="dim", markup=False)
    common.finish(result, json)


def _parse(text: str) -> tuple[str, tuple[int, int]]:
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError(f"--matrix {text!r}: it must be rows and columns of W, such as 9728x2560")
    return text, (int(found[1]), int(found[2]))
