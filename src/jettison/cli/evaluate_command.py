"""The command ``jettison evaluate``."""

from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    epilog = common.example(
        "jettison evaluate runs/scribe --text wikitext2", "jettison evaluate runs/scribe --tasks jettison_suite"
    )
    app.command("evaluate", epilog=epilog)(evaluate)


def evaluate(
    model: common.Model,
    texts: common.Texts = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to measure of each text; 0 for all.")] = 30_720,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", help="Tokens that the model sees at once; by default 512, or fewer if it cannot see so many."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="The original model to compare with.")] = None,
    adapter: Annotated[bool, typer.Option(help="Apply the LoRA adapter, if there is one.")] = True,
    tasks: common.Tasks = None,
    items: common.Items = None,
    images: common.Images = None,
    count: common.Count = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Measure size, quality (perplexity, or accuracy on images or tasks), and distance from the original."""
    from jettison.core.bytesize import format_bytes
    from jettison.domains.text.data import read_documents
    from jettison.pipeline.evaluation import TEXTS
    from jettison.pipeline.evaluation import evaluate as run
    from jettison.pipeline.tasks import check_tasks, evaluate_tasks

    if texts is None:
        texts = []
    common.begin(quiet, json)
    if tasks:  # refuse unknown tasks before texts or tasks are measured
        check_tasks(tasks, items)
    elif items is not None:
        raise UsageError(f"items = {items} without tasks: name some with --tasks")
    for text in texts:
        read_documents(text)
    task_scores = evaluate_tasks(model, tasks, items=items, adapter=adapter) if tasks else {}
    options = {"texts": [] if images else texts or TEXTS, "tokens": tokens or None, "window": window}
    result = run(model, **options, images=images, count=count, teacher=teacher, adapter=adapter)
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
        for text, measured in result.get("texts", {}).items()
    ]
    if rows:
        common.table("text", "perplexity", "nats/token", "KL from original", "same token", rows=rows)
    _print_images(result.get("images", {}))
    for kind in result.keys() - {"size", "teacher", "texts", "images"}:  # of a domain without a table of its own
        for name, measured in result[kind].items():
            figures = ", ".join(f"{key} {value}" for key, value in measured.items())
            common.out.print(f"{kind} {name}: {figures}", markup=False)
    if task_scores:
        result["tasks"] = task_scores
        _print_tasks(task_scores)
    common.finish(result, json)


def _print_images(measured: dict[str, dict[str, Any]]) -> None:
    rows = [
        [
            name,
            f"{score['accuracy']:.1%} ± {score['standard_error']:.1%}",
            f"{score['loss']:.4f}",
            f"{score['kl']:.4f}" if "kl" in score else "",
            f"{score['agreement']:.1%}" if "kl" in score else "",
            f"{score['images']}" + (f" ({score['broken']} broken)" if score["broken"] else ""),
        ]
        for name, score in measured.items()
    ]
    if rows:
        common.table("images", "accuracy", "loss", "KL from original", "same class", "number", rows=rows)


def _print_tasks(scores: dict[str, dict[str, Any]]) -> None:
    """Print a table for each text of the bundled suite, and one for all other tasks."""
    from jettison.domains.text.tasks.suite import GROUPS

    titles = {"jettison_books": "books", "jettison_wikitext": "WikiText-2"}
    bundled = {task: titles[group] for group, members in GROUPS.items() for task in members}
    for title in (*titles.values(), "task"):
        rows = [
            [
                task,
                f"{score['accuracy']:.3f}",
                "" if score["standard_error"] is None else f"± {score['standard_error']:.3f}",
                "" if score["random"] is None else f"{score['random']:.3f}",
                str(score["items"]),
            ]
            for task, score in scores.items()
            if bundled.get(task, "task") == title
        ]
        if rows:
            common.table(title, "accuracy", "error", "guessing", "items", rows=rows)
