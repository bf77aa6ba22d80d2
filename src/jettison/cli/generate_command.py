"""The command ``jettison generate``."""

from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError, unknown

IN_CACHE = 1 << 26  # bytes; up to this size, weights may stay in the processor's cache and need no read from memory


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("generate", epilog=common.example('jettison generate runs/scribe --prompt "It was a dark night"'))(
        generate
    )


def generate(
    model: common.Model,
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="The text to continue. With --chat repeatable: one turn after the other."),
    ] = ("It was",),
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="Sampling temperature; 0 takes the likeliest token.")
    ] = 0.7,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample from the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Sample from the likeliest tokens whose probabilities add up to p; 1 for all."),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option("--min-p", help="Sample from tokens at least p times as likely as the likeliest; 0 for all."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option("--repetition-penalty", help="Make earlier tokens less likely if this is above 1; 1 for none."),
    ] = 1.0,
    stop: Annotated[list[str], typer.Option("--stop", help="Stop writing at this text. Repeatable.")] = (),
    chat: Annotated[
        bool, typer.Option("--chat", help="Send every prompt as a chat message, by the model's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system prompt.")] = None,
    draft: Annotated[
        str,
        typer.Option(
            "--draft", help="Draft tokens to write faster: auto (chosen by `jettison draft`), lookup, or none."
        ),
    ] = "none",
    adapter: Annotated[bool, typer.Option(help="Apply the LoRA adapter, if there is one.")] = True,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Generate text with a checkpoint. Its weights stay packed in memory."""
    from jettison.runtime.load import load
    from jettison.runtime.sampling import Sampling

    common.begin(quiet, json)
    if not chat and (system is not None or len(prompts) > 1):
        what = "--system" if system is not None else f"{len(prompts)} times --prompt"
        raise UsageError(f"{what}: only a chat has more than one message; add --chat")
    if draft not in ("none", "auto", "lookup"):
        raise unknown("draft", draft, ("none", "auto", "lookup"))
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    options |= {"repetition_penalty": repetition_penalty}
    Sampling(**options)  # refuses options that are not valid before the model is loaded
    loaded = load(model, adapter=adapter)
    options |= {"tokens": tokens, "stop": stop, "draft": None if draft == "none" else loaded.find_draft(draft)}
    messages = [] if system is None else [{"role": "system", "content": system}]
    for prompt in prompts:
        messages.append({"role": "user", "content": prompt})
        stream = loaded.stream(messages if chat else prompt, **options)
        if not chat or len(prompts) > 1:
            common.out.print(f"> {prompt}\n" if chat else prompt, end="", markup=False)
        for piece in stream:
            common.out.print(piece, end="", markup=False, soft_wrap=True)
        common.out.print()
        written = stream.generation
        messages.append({"role": "assistant", "content": written.text})
    result = {"prompt": prompts[-1], "text": written.text, "finish_reason": written.finish_reason}
    result |= ({"messages": messages} if chat else {}) | _speed(loaded, written)
    if not quiet:
        common.out.print(f"[dim]{_speed_line(result)}[/dim]")
    common.finish(result, json)


def _speed(loaded, written) -> dict[str, Any]:
    """Return speeds, bytes and, with draft tokens, the acceptance rate, for the result."""
    from jettison.bench.decoding import cache_bytes, measured_limit, read_bytes

    speed, weights = written.timings, read_bytes(loaded.model)
    stats = {"tokens_per_second": speed.decode, "prefill_tokens_per_second": speed.prefill}
    stats |= {"engine": loaded.decoder is not None, "weight_bytes": weights}
    if written.speculation.rounds:
        stats |= {"acceptance_rate": written.speculation.acceptance}
        stats |= {"tokens_per_step": written.speculation.tokens_per_step}
    if loaded.decoder:
        positions = speed.read + speed.written
        stats["cache_bytes"] = cache_bytes(loaded.model) * positions
        # Bytes that a token reads on average: all weights, and the cache when half of the text is written.
        read = weights + cache_bytes(loaded.model) * (speed.read + speed.written / 2)
        if weights > IN_CACHE and not written.speculation.rounds:  # otherwise a token costs less than one full read
            stats["share_of_read_limit"] = speed.decode * read / measured_limit()
    return stats


def _speed_line(result: dict[str, Any]) -> str:
    from jettison.core.bytesize import format_bytes

    line = f"read {result['prefill_tokens_per_second']:.1f} tokens/s, wrote {result['tokens_per_second']:.1f} tokens/s"
    if "tokens_per_step" in result:
        accepted = f"{100 * result['acceptance_rate']:.0f} % of the draft tokens accepted"
        line += f" ({accepted}, {result['tokens_per_step']:.2f} tokens per step)"
    if not result["engine"]:
        return f"{line}, by PyTorch; {format_bytes(result['weight_bytes'])} of weights"
    if "share_of_read_limit" in result:
        line += f" ({100 * result['share_of_read_limit']:.0f} % of the limit set by memory bandwidth)"
    memory = f"{format_bytes(result['weight_bytes'])} of weights, {format_bytes(result['cache_bytes'])} of cache"
    return f"{line}, by the native decoder; {memory}"
