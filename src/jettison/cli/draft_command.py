"""jettison draft"""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common


def register(app: typer.Typer) -> None:
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
        typer.Option("--ratio", help="Share of blocks that a draft leaves out. Repeatable; 0: none."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="What is left out: fisher, cosine, magnitude, random, stride, last.")
    ] = "fisher",
    perturbation: Annotated[
        str, typer.Option("--perturbation", help="Of fisher: removal, variance, elementwise.")
    ] = "removal",
    halves: Annotated[bool, typer.Option("--halves", help="Leave out attention and MLP on their own.")] = False,
    view: Annotated[
        list[str] | None, typer.Option("--view", help="The model in fewer bits: gateup2, all2, all4, none. Repeatable.")
    ] = None,
    lookup: Annotated[int, typer.Option("--lookup", help="Tokens of a match in earlier text, at most; 0: none.")] = 4,
    corpus: Annotated[str | None, typer.Option("--corpus", help="A text to look up in as well.")] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="Of what is written meanwhile.")
    ] = 0.0,
    text: Annotated[str, typer.Option("--text", help="Where prompts are from: books, or a UTF-8 file.")] = "books",
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Texts that are written.")] = 6,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=8, help="Tokens of each.")] = 96,
    activation_bits: Annotated[int, typer.Option("--activation-bits", help="15 or 8, see docs/kernels.md.")] = 15,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the draft that was chosen before as a model folder.")
    ] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose how a checkpoint drafts for itself, and record it: nothing is trained, and no output changes."""
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

    found = choose(
        model, ratios=RATIOS if ratio is None else [each for each in ratio if each], method=method,
        perturbation=perturbation, halves=halves, views=view and [name for name in view if name != "none"],
        lookup=lookup, corpus=corpus, temperature=temperature, text=text, prompts=prompts, tokens=tokens,
        activation_bits=activation_bits, seed=seed,
    )  # fmt: skip
    rows = [
        [row["draft"], f"{100 * row['acceptance']:.0f} %", f"{row['step']:.2f}", f"{row['expected']:.2f}"]
        for row in found["rows"]
    ]
    common.table("draft", "taken", "cost of\na step", "expected,\ntimes as fast", rows=rows, text=("draft",))
    common.out.print()
    rows = [[row["draft"], f"{row['expected']:.2f}", f"{row['measured']:.2f}"] for row in found["tried"]]
    common.table("written with", "expected", "measured,\ntimes as fast", rows=rows, text=("written with",))
    common.out.print("\n" + ("" if found["draft"] else "No draft pays: ") + found["reason"], markup=False)
    return common.finish(found, json)
