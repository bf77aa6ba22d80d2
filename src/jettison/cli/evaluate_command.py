"""jettison evaluate"""

from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    app.command("evaluate", epilog=common.example("jettison evaluate runs/scribe --text wikitext2"))(evaluate)


def evaluate(
    model: common.Model,
    texts: common.Texts = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of each text; 0 for all of it.")] = 30_720,
    window: Annotated[int, typer.Option("--window", help="Tokens that the model sees at once.")] = 512,
    teacher: Annotated[str | None, typer.Option("--teacher", help="The original to compare with.")] = None,
    adapter: Annotated[bool, typer.Option(help="Apply the adapter, if there is one.")] = True,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Measure size, perplexity, and distance from the original."""
    from jettison.evaluate import evaluate as run
    from jettison.evaluate.quality import TEXTS
    from jettison.units import format_bytes

    if texts is None:
        texts = []
    common.begin(quiet)
    result = run(model, texts=texts or TEXTS, tokens=tokens or None, window=window, teacher=teacher, adapter=adapter)
    size = result["size"]
    common.out.print(f"{format_bytes(size['bytes'])}, {size['bits_per_weight']:.2f} bits per weight")
    rows = [
        [
            text,
            f"{measured['perplexity']:.2f}",
            f"{measured['log_perplexity']:.4f}",
            f"{measured['kl']:.4f}" if "kl" in measured else "",
            f"{measured['agreement']:.1%}" if "kl" in measured else "",
        ]
        for text, measured in result["texts"].items()
    ]
    common.table("text", "perplexity", "nats/token", "KL from original", "same token", rows=rows)
    common.finish(result, json)
