"""jettison generate"""

from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    app.command("generate", epilog=common.example('jettison generate runs/scribe --prompt "It was a dark night"'))(
        generate
    )


def generate(
    model: common.Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to go on from.")] = "It was",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0, help="0: the likeliest token.")] = 0.7,
    adapter: Annotated[bool, typer.Option(help="Apply the adapter, if there is one.")] = True,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Let a checkpoint write. Weights stay packed in memory."""
    from jettison.decode import load

    common.begin(quiet)
    loaded = load(model, adapter=adapter)
    common.out.print(prompt, end="", markup=False)
    text = ""
    for piece in loaded.stream(prompt, tokens=tokens, temperature=temperature, seed=seed):
        common.out.print(piece, end="", markup=False, soft_wrap=True)
        text += piece
    common.out.print()
    if not quiet:
        common.out.print(f"[dim]{loaded.speed:.1f} tokens/s[/dim]")
    common.finish({"prompt": prompt, "text": text, "tokens_per_second": loaded.speed}, json)
