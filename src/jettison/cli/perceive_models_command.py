"""The commands ``train`` and ``evaluate`` of ``jettison perceive``: perception models on a driving dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jettison.cli import common

if TYPE_CHECKING:
    from jettison.domains.perception.scoring import Scores

EXAMPLES = {
    "train": (
        "jettison perceive train lane_regressor --data world --out lanes",
        "jettison perceive train lane_regressor --data CULane/ --out lanes --set height=160 --steps 20000",
        "jettison perceive train sa_fsm --data world --out depth --set matcher=LightGlue/",
    ),
    "evaluate": (
        "jettison perceive evaluate lanes --data world",
        "jettison perceive evaluate lanes --data world --split val --predictions made/ --json scores.json",
    ),
}
Data = Annotated[
    Path, typer.Option("--data", help="Folder of a driving dataset, or that `jettison perceive world` wrote.")
]
LayoutName = Annotated[
    str | None,
    typer.Option("--layout", help="Layout of the data: culane, tusimple, openlanev2, ddad or nuscenes; else guessed."),
]


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model, such as lane_regressor.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model; a run that was killed continues.")],
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of every stage. Default: the model's.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Frames of a step. Default: the model's.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Peak learning rate. Default: the model's.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the model's config: field=value. Repeatable.")
    ] = None,
    layout: LayoutName = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Begin with the weights of this folder, of the same model.")
    ] = None,
    stages: Annotated[
        list[str] | None, typer.Option("--stages", help="Run only this stage of the training. Repeatable.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Keep what is made of the data here (matches), for other runs, too.")
    ] = None,
    save_every: Annotated[
        float, typer.Option("--save-every", min=0, help="Save the training state every so many seconds.")
    ] = 60.0,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:  # fmt: skip
    """Train a perception model on the split train of a dataset, and keep what is best on val.

    OUT becomes a model folder, for `jettison compress` and all other commands.
    """
    from jettison.domains.perception.learning import train as run

    common.begin(quiet, json)
    options = {"steps": steps, "batch": batch, "rate": rate, "changes": changes or [], "layout": layout}
    options |= {"start": start, "stages": stages or None, "cache": cache}
    result = run(model, data, out, **options, seed=seed, save_every=save_every)
    rows = [
        [row["stage"], f"{row['steps']:,}", f"{row['loss']:.4f}", f"{row['score']:.4f}"] for row in result["stages"]
    ]
    common.table("stage", "steps", "last loss", "best score on val", rows=rows)
    common.out.print(f"\n{out}: {model}, from {result['frames']['train']:,} frames", markup=False, soft_wrap=True)
    common.finish(result, json)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a perception model, also a compressed one.")],
    data: Data,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    layout: LayoutName = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="Keep the predictions here, as `jettison perceive score` reads them: a new folder "
            "(CULane, DDAD, nuScenes) or a file (TuSimple, OpenLane-V2)."
        ),
    ] = None,
    rule: Annotated[str, typer.Option("--rule", help="Rule of the OpenLane-V2 score: v2.1, v1.1 or v1.0.")] = "v2.1",
    adapter: Annotated[bool, typer.Option(help="Apply the LoRA adapter, if there is one.")] = True,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:  # fmt: skip
    """Run a perception model on a dataset, and score it as the dataset's benchmark does."""
    from jettison.pipeline.perceiving import evaluate_perception

    common.begin(quiet, json)
    options = {"split": split, "layout": layout, "predictions": predictions, "adapter": adapter, "rule": rule}
    scores = evaluate_perception(model, data, **options)
    show_scores(scores)
    common.finish({"model": str(model), "data": str(data), "split": split} | scores.to_dict(), json)


def show_scores(scores: "Scores") -> None:
    """Print scores as a table, and what was scored."""
    cell = lambda value: f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4f}"
    common.table("", *scores.columns, rows=[[name, *map(cell, row)] for name, row in scores.rows.items()])
    common.out.print(f"\n{scores.frames:,} frames of {scores.layout}")
    if scores.left_out:
        common.out.print(
            f"{len(scores.left_out):,} images have no true depth, such as {scores.left_out[0]}", markup=False
        )
