"""The command ``jettison export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common

EXAMPLES = (
    "jettison export runs/mine --to gptq,auto-round,transformers --out exports --verify",
    "jettison export runs/classifier-w8 --to onnx --out classifier.onnx",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export", epilog=common.example(*EXAMPLES))(export)


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A quantized language model: a folder that Jettison wrote, or another checkpoint or GGUF file. For "
            "onnx, an image classifier or perception model."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The folder for all formats; a killed export continues there. onnx alone: a file."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Formats, with commas: gptq, gptq-v2, awq, auto-round, compressed-tensors, safetensors, transformers "
            "(dequantized), gguf, onnx.",
        ),
    ] = "onnx",
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter", help="What becomes of a recovered LoRA adapter: keep it apart, merge, or fold into scales."
        ),
    ] = "keep",
    verify: Annotated[
        bool, typer.Option("--verify", help="Load each result in its engine if that is installed, and compare.")
    ] = False,
    texts: common.Texts = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens of each text to compare on; 4096 by default.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", help="Prompts to continue greedily; 20 by default.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Size of the images, such as 224 or 192x256 (height and width); by default the model's own."
        ),
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Write a model in the formats that other engines load, and check each result in its engine.

    A format that cannot hold the model is refused with the reason; the others are written. For onnx alone, --out is the
    file, which is checked in ONNX Runtime.
    """
    from jettison.pipeline.exporting import PROMPTS, TEXTS, TOKENS, format_names
    from jettison.pipeline.exporting import export as run

    names = format_names(to)
    files = (json, out) if names == ["onnx"] else (json,)
    common.begin(quiet, *files)
    asked = {"texts": texts or TEXTS, "tokens": TOKENS if tokens is None else tokens}
    asked["prompts"] = PROMPTS if prompts is None else prompts
    result = run(model, out, to=names, size=size, adapter=adapter, verify=verify, **asked)
    if names == ["onnx"]:
        _show_onnx(result)
    else:
        show_formats(result)
    common.finish(result, json)


def _show_onnx(result: dict[str, Any]) -> None:
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import figures

    (name, shape), *_ = result["input"].items()
    about = f"{format_bytes(result['bytes'])}, opset {result['opset']}, {name} ({', '.join(map(str, shape))})"
    common.out.print(f"{result['file']}: {about}", markup=False, soft_wrap=True)
    if result["difference"] is not None:
        line = f"largest difference of its logits to PyTorch's: {figures(result['difference'])}"
        common.out.print(f"{line}, where the largest logit is {figures(result['largest'])}", markup=False)


def show_formats(result: dict[str, Any]) -> None:
    """Print a row for each format that was written, with what the check found, and then refusals and notes."""
    from jettison.core.bytesize import format_bytes

    written = [row for row in result["formats"] if "path" in row]
    checked = any("engine" in row for row in written)
    rows = []
    for row in written:
        cells = [row["format"], row["path"], format_bytes(row["bytes"])]
        if checked and "engine" in row:
            scores, same = list(row["texts"].values()), row["continuations"]
            several = lambda key, digits, scores=scores: " ".join(f"{score[key]:.{digits}f}" for score in scores)
            cells += [row["engine"], several("perplexity_ours", 2), several("perplexity", 2), several("kl", 4)]
            cells += [f"{same['same']} of {same['prompts']}"]
        elif checked:
            cells += [""] * 5
        rows.append(cells)
    columns = ["format", "path", "size"]
    columns += ["engine", "perplexity\nours", "\nthere", "KL from\nours", "same\ntexts"] if checked else []
    common.table(*columns, rows=rows, text=("path", "engine"))
    lines = [f"{row['format']}: refused: {reason}" for row in result["formats"] for reason in row.get("refused", ())]
    for row in written:
        notes = [*row["notes"], *([row["engine_note"]] if row.get("engine_note") else [])]
        lines += [f"{row['format']}: {note}" for note in dict.fromkeys(notes)]
        if row["stored_dense"]:
            lines.append(f"{row['format']}: {len(row['stored_dense'])} quantized matrices are in full precision")
    if result["adapter"]:
        lines.append({
            "keep": "the LoRA adapter lies in adapter/ of each folder, for PEFT",
            "merge": "the LoRA adapter is merged into the weights",
            "fold": "the LoRA adapter is folded into the scales, as far as they can hold it",
        }[result["adapter"]])  # fmt: skip
    for line in lines:
        common.out.print(line, markup=False, soft_wrap=True)
