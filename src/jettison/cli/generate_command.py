"""jettison generate"""

from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import unknown

IN_CACHE = 1 << 26  # bytes of weights that a processor may not have to read from memory


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
    draft: Annotated[
        str, typer.Option("--draft", help="Write faster with drafts: auto (of `jettison draft`), lookup, or none.")
    ] = "none",
    adapter: Annotated[bool, typer.Option(help="Apply the adapter, if there is one.")] = True,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Let a checkpoint write. Weights stay packed in memory."""
    from jettison.runtime.load import load
    from jettison.runtime.sampling import Sampling

    common.begin(quiet, json)
    if draft not in ("none", "auto", "lookup"):
        raise unknown("draft", draft, ("none", "auto", "lookup"))
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    options |= {"repetition_penalty": repetition_penalty}
    Sampling(**options)  # before the model is loaded
    loaded = load(model, adapter=adapter)
    options |= {"tokens": tokens, "stop": stop, "draft": None if draft == "none" else loaded.find_draft(draft)}
    stream = loaded.stream([{"role": "user", "content": prompt}] if chat else prompt, **options)
    if not chat:
        common.out.print(prompt, end="", markup=False)
    for piece in stream:
        common.out.print(piece, end="", markup=False, soft_wrap=True)
    common.out.print()
    written = stream.generation
    result = {"prompt": prompt, "text": written.text, "finish_reason": written.finish_reason} | _speed(loaded, written)
    if not quiet:
        common.out.print(f"[dim]{_said(result)}[/dim]")
    common.finish(result, json)


def _speed(loaded, written) -> dict[str, Any]:
    from jettison.bench.decoding import cache_bytes, measured_limit, read_bytes

    speed, weights = written.timings, read_bytes(loaded.model)
    found = {"tokens_per_second": speed.decode, "prefill_tokens_per_second": speed.prefill}
    found |= {"engine": loaded.decoder is not None, "weight_bytes": weights}
    if written.speculation.rounds:
        found |= {"acceptance_rate": written.speculation.acceptance}
        found |= {"tokens_per_step": written.speculation.tokens_per_step}
    if loaded.decoder:
        positions = speed.read + speed.written
        found["cache_bytes"] = cache_bytes(loaded.model) * positions
        read = weights + cache_bytes(loaded.model) * (speed.read + speed.written / 2)
        if weights > IN_CACHE and not written.speculation.rounds:  # else a token is less than one reading
            found["share_of_read_limit"] = speed.decode * read / measured_limit()
    return found


def _said(result: dict[str, Any]) -> str:
    from jettison.core.bytesize import format_bytes

    said = f"read {result['prefill_tokens_per_second']:.1f} tokens/s, wrote {result['tokens_per_second']:.1f} tokens/s"
    if "tokens_per_step" in result:
        taken = f"{100 * result['acceptance_rate']:.0f} % of what drafts proposed taken"
        said += f" ({taken}, {result['tokens_per_step']:.2f} tokens per step)"
    if not result["engine"]:
        return f"{said}, by PyTorch; {format_bytes(result['weight_bytes'])} of weights"
    if "share_of_read_limit" in result:
        said += f" ({100 * result['share_of_read_limit']:.0f} % of what memory allows)"
    memory = f"{format_bytes(result['weight_bytes'])} of weights, {format_bytes(result['cache_bytes'])} of cache"
    return f"{said}, by the native decoder; {memory}"
