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
    top_k: Annotated[int, typer.Option("--top-k", help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Only the likeliest that make up p together.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Only what is at least p times as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="More than 1: tokens that were there before are less likely.")
    ] = 1.0,
    stop: Annotated[list[str], typer.Option("--stop", help="A text that ends it. Repeatable.")] = (),
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a message of a chat.")] = False,
    adapter: Annotated[bool, typer.Option(help="Apply the adapter, if there is one.")] = True,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Let a checkpoint write. Weights stay packed in memory."""
    from jettison.decode import load

    common.begin(quiet)
    loaded = load(model, adapter=adapter)
    if not chat:
        common.out.print(prompt, end="", markup=False)
    text, options = "", {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    options |= {"repetition_penalty": repetition_penalty, "tokens": tokens, "stop": stop}
    for piece in loaded.stream([{"role": "user", "content": prompt}] if chat else prompt, **options):
        common.out.print(piece, end="", markup=False, soft_wrap=True)
        text += piece
    common.out.print()
    if not quiet:
        by = "the engine" if loaded.engine else "PyTorch"
        said = f"read {loaded.speed.prefill:.1f} tokens/s, wrote {loaded.speed.decode:.1f} tokens/s, by {by}"
        common.out.print(f"[dim]{said}[/dim]")
    speed = {"tokens_per_second": loaded.speed.decode, "prefill_tokens_per_second": loaded.speed.prefill}
    common.finish({"prompt": prompt, "text": text} | speed, json)
