"""The commands ``attack`` and ``budget`` of ``jettison offload``: what leaves a device, and what it tells.

They are plain functions with their examples in ``COMMANDS``; the group ``jettison offload`` takes them in.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.cli import offload_options as options
from jettison.core.errors import UsageError

Limits = Annotated[
    list[float],
    typer.Option("--limit", help="Nats that everything sent about one secret may tell. Repeatable."),
]
Draws = Annotated[
    list[int], typer.Option("--draws", help="Fresh draws of noise that share the limit of a secret. Repeatable.")
]


def budget(
    limit: Limits = (1.0,),
    draws: Draws = (1, 30, 1800),
    secrets: Annotated[int, typer.Option("--secrets", help="How many equally likely secrets there are.")] = 40,
    delta: options.Delta = 0.0,
    every: options.Every = 1,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames that a secret lasts, at most.")] = None,
    count_timing: Annotated[
        bool, typer.Option("--count-timing", help="Take what the times of draws can tell off the limit.")
    ] = False,
    json: common.Json = None,
) -> None:
    """Say in words and figures what a limit promises: how often a guess is right, and how it is shared by draws."""
    from jettison.core.numbers import figures
    from jettison.offload.accounting import Terms, describe

    common.begin(True, json)
    if not limit or not draws:
        raise UsageError("limit and draws are needed")
    grants = [
        Terms(value, number, secrets, delta, every, frames, count_timing) for value in limit for number in draws
    ]  # fmt: skip
    rows = [
        [figures(terms.limit), f"{terms.draws:,}", figures(terms.budget), _percent(terms.after(1)),
         _percent(terms.success), figures(terms.timing_bound)]
        for terms in grants
    ]  # fmt: skip
    common.table("limit, nats", "draws", "each", "right after one", "right at the limit", "times tell", rows=rows)
    common.out.print()
    common.out.print(describe(grants[0]), markup=False, soft_wrap=True)
    data = [
        {"limit": terms.limit, "draws": terms.draws, "secrets": terms.secrets, "budget": terms.budget,
         "success_after_one": terms.after(1), "success": terms.success, "timing_bound": terms.timing_bound}
        for terms in grants
    ]  # fmt: skip
    common.finish(data, json)


def attack(
    out: common.Out,
    limit: Limits = (1.0, 0.1),
    draws: Draws = (1,),
    rule: Annotated[
        list[str],
        typer.Option(
            "--rule",
            help="Noise: exact, waterfilling, linear, isotropic, released, dp-replace, dp-released. Repeatable.",
        ),
    ] = ("exact",),
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A person's folder in the layout of multiface, not a synthetic avatar."),
    ] = None,
    texture: Annotated[int, typer.Option("--texture", help="Side of the texture.")] = 32,
    expressions: Annotated[int, typer.Option("--expressions", help="How many expressions the avatar has.")] = 20,
    frames: Annotated[int, typer.Option("--frames", help="Frames to train on; half as many are attacked.")] = 600,
    offloaded: Annotated[int, typer.Option("--offloaded", help="How many frequency components leave the device.")] = 12,
    choose: Annotated[
        str, typer.Option("--choose", help="How these are chosen: energy, loss, search, released.")
    ] = "energy",
    encoder: Annotated[
        str, typer.Option("--encoder", help="trained, or released: the offloaded encoder stays random.")
    ] = "trained",
    steps: Annotated[int, typer.Option("--steps", help="Steps of training.")] = 1500,
    tries: Annotated[int, typer.Option("--tries", help="Guesses of every attack.")] = 1000,
    page: Annotated[Path | None, typer.Option("--page", help="Write an HTML page with pictures to this file.")] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Train a small avatar, noise what leaves the device, and attack it; says whether the promised bound holds.

    The training in --out is continued if it was killed, and reused if it is done.
    """
    from jettison.core.errors import unknown
    from jettison.core.numbers import check_number, check_seed, figures
    from jettison.offload.accounting import Terms, describe
    from jettison.offload.avatar import HALF
    from jettison.offload.experiment import Experiment, read_setup, train_synthetic
    from jettison.offload.local_dp import SENSITIVITIES
    from jettison.offload.noise import RULES

    common.begin(quiet, json, page)
    check_seed(seed)
    check_number("tries", tries, 1, 10**7, whole=True)
    for name in rule:
        if name not in (valid := (*RULES, *(f"dp-{kind}" for kind in SENSITIVITIES))):
            raise unknown("rule", name, valid)
    if not limit or not draws or not rule:
        raise UsageError("limit, draws and rule are needed")
    for value in limit:  # before the training, though the number of secrets is known after it
        for number in draws:
            Terms(value, number)
    setup = read_setup({
        "texture": texture, "expressions": expressions, "frames": frames, "offloaded": offloaded, "choose": choose,
        "steps": steps, "encoder": encoder, "seed": seed,
    })  # fmt: skip
    experiment = train_synthetic(setup, out) if data is None else Experiment(setup, out, *_recorded(setup, data))
    grants = [Terms(value, number, experiment.secrets) for value in limit for number in draws]
    noises = {(terms, name): experiment.noise(terms.budget, name) for terms in grants for name in rule}
    results, rows = [], []
    for terms, name, noise in [(None, "none", None), *((*key, noise) for key, noise in noises.items())]:
        repeats = (terms.draws,) if terms else (1,)
        loss = experiment.losses(noise)["loss"]
        for result in experiment.attack(noise, repeats=repeats, tries=tries):
            promised = "" if noise is None else "broken" if result.over > 0 else "kept"
            rows.append([
                name, figures(terms.limit) if terms else "", f"{result.repeats:,}", result.attack, figures(loss),
                _percent(result.success.rate), f"{_percent(result.success.low)} to {_percent(result.success.high)}",
                _percent(result.bound), promised,
            ])  # fmt: skip
            trace = None if noise is None else noise.trace
            results.append(
                {"rule": name, "limit": terms and terms.limit, "loss": loss, "trace": trace} | result.to_dict()
            )
    columns = ("noise", "limit", "draws", "attack", "loss", "right", "95 % interval", "at most", "bound")
    common.table(*columns, rows=rows, text=("attack", "bound"))
    local = experiment.losses(local=True)["loss"]
    common.out.print(f"\nlocal part alone: loss {figures(local)}", markup=False)
    missing = experiment.shortfall()
    if missing > 1:
        common.out.print(
            f"The estimate of the covariance is too small by {figures(missing)} in a direction: a bound may be broken.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    lead = describe(grants[0], noises[grants[0], rule[0]])
    common.out.print(lead, markup=False, soft_wrap=True)
    common.out.print(f"the half for a worker: {out / HALF}", markup=False, soft_wrap=True)
    if page is not None:
        from jettison.offload.gallery import write_page

        table: dict[str, Any] = {"title": "Attacks", "columns": columns, "rows": rows}
        captions = {f"{key[1]}, {figures(key[0].budget)} nats": noise for key, noise in noises.items()}
        write_page(page, experiment, captions, lead, [table], grid=None if data else setup.grid)
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(experiment.to_dict() | {"results": results}, json)


def _recorded(setup: Any, data: Path) -> tuple[Any, Any]:
    """Return recorded frames to train on, and those that are attacked."""
    import torch

    from jettison.domains.perception.avatars.multiface import Multiface
    from jettison.offload.experiment import shared_expressions

    recorded = Multiface(data, setup.texture)
    places = torch.randperm(len(recorded), generator=torch.Generator().manual_seed(setup.seed))[: setup.frames * 3 // 2]
    if len(places) < 3:
        raise UsageError(f"{data} has {len(recorded)} frames: at least 3 are needed")
    first = len(places) * 2 // 3
    return shared_expressions(recorded.load(places[:first]), recorded.load(places[first:]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


COMMANDS = (
    (attack, "jettison offload attack --out runs/avatar --limit 1 --limit 0.1 --rule exact --rule dp-replace",
     "jettison offload attack --out runs/avatar --limit 1 --draws 30 --page attack.html"),
    (budget, "jettison offload budget --limit 1 --draws 30 --secrets 40",
     "jettison offload budget --limit 20 --draws 30 --delta 0.1 --frames 120 --count-timing"),
)  # fmt: skip
