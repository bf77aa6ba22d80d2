"""The command ``jettison export``."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    epilog = common.example("jettison export runs/classifier-w8 --to onnx --out classifier.onnx")
    app.command("export", epilog=epilog)(export)


def export(
    model: Annotated[
        str, typer.Argument(help="An image classifier or perception model: a folder that Jettison wrote, or any.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="What to write: onnx.")] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Size of the images, such as 224 or 192x256 (height and width); by default the model's own."
        ),
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Write an image classifier or perception model as ONNX, packed weights as int8, and check it in ONNX Runtime."""
    from jettison.core.bytesize import format_bytes
    from jettison.core.numbers import figures
    from jettison.pipeline.exporting import export as run

    common.begin(quiet, json, out)
    result = run(model, out, to=to, size=size)
    (name, shape), *_ = result["input"].items()
    about = f"{format_bytes(result['bytes'])}, opset {result['opset']}, {name} ({', '.join(map(str, shape))})"
    common.out.print(f"{result['file']}: {about}", markup=False, soft_wrap=True)
    if result["difference"] is not None:
        line = f"largest difference of its logits to PyTorch's: {figures(result['difference'])}"
        common.out.print(f"{line}, where the largest logit is {figures(result['largest'])}", markup=False)
    common.finish(result, json)
