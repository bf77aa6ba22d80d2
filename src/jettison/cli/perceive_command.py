"""The commands of ``jettison perceive``: driving scenes, their models and scores."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli.perceive_models_command import EXAMPLES as OF_MODELS
from jettison.cli.perceive_models_command import evaluate, show_scores, train
from jettison.cli.perceive_world_command import EXAMPLES, show, world


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Perception for driving: lanes, roads and depth. Render a world, train models, score predictions.",
        epilog=common.example(
            "jettison perceive world --out world --scenes 10",
            "jettison perceive train lane_regressor --data world --out lanes",
        ),
    )
    for function, *examples in (
        (world, *EXAMPLES["world"]),
        (show, *EXAMPLES["show"]),
        (train, *OF_MODELS["train"]),
        (evaluate, *OF_MODELS["evaluate"]),
        (score, "jettison perceive score predictions/ CULane/",
         "jettison perceive score results.json OpenLane-V2/ --subset A --json scores.json",
         "jettison perceive score depth.npz nuscenes/ --incomplete"),
    ):  # fmt: skip
        group.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(group, name="perceive")


def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="Predictions: a folder of .lines.txt files (CULane), JSON lines (TuSimple), results as JSON "
            "(OpenLane-V2), or depth maps: a folder or file of npz or safetensors (DDAD, nuScenes)."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset, in its public layout.")],
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", help="Layout of DIR: culane, tusimple, openlanev2, ddad, nuscenes or world. Default: guessed."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test. Default: test for CULane and TuSimple, else val.")
    ] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Subset of OpenLane-V2, such as A.")] = None,
    rule: Annotated[str, typer.Option("--rule", help="Rule of the OpenLane-V2 score: v2.1, v1.1 or v1.0.")] = "v2.1",
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Score what is there, if files of the dataset are missing.")
    ] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Score prediction files against the labels of a dataset, as its benchmark does."""
    from jettison.domains.perception.scoring import score as run

    common.begin(quiet, json)
    result = run(predictions, folder, layout=layout, split=split, incomplete=incomplete, rule=rule, subset=subset)
    show_scores(result)
    common.finish(result.to_dict(), json)
