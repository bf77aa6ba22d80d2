"""The command ``jettison draft``."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    examples = (
        "jettison draft runs/mine",
        "jettison draft runs/mine --ratio 0.25 --view gateup2 --temperature 0.7 --corpus my-texts.txt",
        "jettison draft runs/mine --export runs/mine-draft",
    )
    app.command("draft", epilog=common.example(*examples))(draft)


def draft(
    model: common.Model,
    ratio: Annotated[
        list[float] | None,
        typer.Option("--ratio", help="Share of the blocks that a draft model leaves out; 0 for none. Repeatable."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="How to rank the blocks to leave out: fisher, cosine, magnitude, random, stride, last."
        ),
    ] = "fisher",
    perturbation: Annotated[
        str,
        typer.Option(
            "--perturbation", help="Perturbation of the weights that fisher assumes: removal, variance, elementwise."
        ),
    ] = "removal",
    halves: Annotated[
        bool, typer.Option("--halves", help="Leave out the attention and the MLP of a block independently.")
    ] = False,
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view", help="Use the model in fewer bits as draft model: gateup2, all2, all4, none. Repeatable."
        ),
    ] = None,
    lookup: Annotated[
        int,
        typer.Option(
            "--lookup", help="Look up draft tokens in earlier text by a match of at most this many tokens; 0 for none."
        ),
    ] = 4,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Look up draft tokens in this text too, such as a UTF-8 file.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="Temperature of the texts that are written to measure.")
    ] = 0.0,
    text: Annotated[
        str, typer.Option("--text", help="Take the prompts from this text: books, or a UTF-8 file.")
    ] = "books",
    prompts: Annotated[
        int, typer.Option("--prompts", min=1, help="Number of prompts; one text is written for each of them.")
    ] = 6,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=8, help="Tokens to write for each prompt.")] = 96,
    activation_bits: Annotated[
        int, typer.Option("--activation-bits", help="Bits of the activations: 15 or 8, see docs/reference/kernels.md.")
    ] = 15,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write the draft model of an earlier call to this folder, and do nothing else."),
    ] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose the fastest way for a checkpoint to draft tokens for itself, and record it in its folder.

    Nothing is trained. Draft tokens change the speed, not the output.
    """
    common.begin(quiet, json)
    if export is not None:
        from jettison.core.errors import UsageError
        from jettison.graph.folder import ModelFolder
        from jettison.runtime.speculative.choose import export_draft
        from jettison.runtime.speculative.draft import read_draft

        chosen, reason = read_draft(ModelFolder(model))
        if chosen is None:
            raise UsageError(f"no draft was chosen for {model}: {reason}")
        export_draft(model, chosen, export)
        common.out.print(f"{export}: {chosen}", markup=False)
        return common.finish({"draft": str(chosen), "folder": str(export)}, json)
    from jettison.runtime.speculative.choose import RATIOS
    from jettison.runtime.speculative.choose import draft as choose

    result = choose(
        model, ratios=RATIOS if ratio is None else [share for share in ratio if share], method=method,
        perturbation=perturbation, halves=halves, views=view and [name for name in view if name != "none"],
        lookup=lookup, corpus=corpus, temperature=temperature, text=text, prompts=prompts, tokens=tokens,
        activation_bits=activation_bits, seed=seed,
    )  # fmt: skip
    rows = [
        [row["draft"], f"{100 * row['acceptance']:.0f} %", f"{row['step']:.2f}", f"{row['expected']:.2f}"]
        for row in result["rows"]
    ]
    common.table("draft", "taken", "cost of\na step", "expected,\ntimes as fast", rows=rows, text=("draft",))
    common.out.print()
    rows = [[row["draft"], f"{row['expected']:.2f}", f"{row['measured']:.2f}"] for row in result["tried"]]
    common.table("written with", "expected", "measured,\ntimes as fast", rows=rows, text=("written with",))
    common.out.print("\n" + ("" if result["draft"] else "No draft pays: ") + result["reason"], markup=False)
    return common.finish(result, json)
