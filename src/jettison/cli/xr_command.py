"""The commands of ``jettison xr``: run, sweep, live, compare and tune scenarios of XRBench."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common
from jettison.cli import xr_options as xr
from jettison.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Simulate, run and tune XRBench: real-time perception with several models at once.",
        epilog=common.example("jettison xr run vr-gaming --accelerator J --page run.html"),
    )
    for function, *examples in (
        (run, "jettison xr run vr-gaming --accelerator A --compat v0.1",
         "jettison xr run ar-assistant --device strix-halo --recipe folded+bfloat16 --page run.html"),
        (sweep, "jettison xr sweep --compat v0.1 --exact --page sweep.html",
         "jettison xr sweep ar-assistant -a A -a J --scheduler edf --seeds 1000 --workers 2",
         "jettison xr sweep vr-gaming -a B -a J --probability GE=0.25 --probability GE=1 --seeds 100"),
        (live, "jettison xr live social-interaction-a --units 2 --seconds 10 --trace live.json"),
        (compare, "jettison xr compare simulated.json live.json --page compare.html"),
        (tune, "jettison xr tune vr-gaming --units 2 --live 5 --page tuned.html"),
    ):  # fmt: skip
        group.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(group, name="xr")


def run(
    scenario: xr.Scenario,
    accelerator: xr.Accelerator = None,
    device: xr.Devices = (),
    costs: xr.CostFile = None,
    workload: xr.Workload = "native",
    size: xr.Size = "full",
    recipe: xr.Recipes = (),
    offload: xr.Offload = (),
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 1.0,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Number of runs, one per seed; the scores are averaged, the first is shown.")
    ] = 1,
    compat: xr.Compat = None,
    preempt: xr.Preempt = False,
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    trace: xr.Trace = None,
    page: xr.Page = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Append the schedule to this file, in the official program's columns.")
    ] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Simulate a scenario with known costs: the official ones of an accelerator, a device's roofline, or a file."""
    from jettison.xr.official import write_schedule
    from jettison.xr.sessions import simulate_scenario

    common.begin(quiet, json, page, trace, csv)
    session = simulate_scenario(
        scenario, accelerator=accelerator, devices=device, file=costs, workload=workload, size=size,
        recipes=xr.recipes(recipe), scheduler=scheduler, seconds=seconds, seeds=seeds, compat=compat, preempt=preempt,
        jitter=jitter, drop_penalty=drop_penalty, seed=seed, offload=xr.pairs("--offload", offload),
    )  # fmt: skip
    data, timeline, score = session.data, session.timelines[0], session.scores[0]
    xr.print_models(data["score"])
    common.out.print(f"\n[bold]score {score.overall:.3f}[/bold], dropped {timeline.drop_rate:.1%}, units busy "
                     f"{', '.join(f'{share:.0%}' for share in data['busy'])}")  # fmt: skip
    if compat:
        common.out.print(f"as the official program prints it: {score.overall_logged:.3f}", style="dim")
    if summary := data.get("summary"):
        interval = f"95 % interval {summary['low']:.3f} to {summary['high']:.3f}"
        common.out.print(f"{seeds} seeds: mean {summary['mean']:.3f}, {interval}")
    if csv is not None:
        write_schedule(timeline, csv)
    xr.write(timeline, score, session.scenario.title, trace, page)
    common.finish(data, json)


def sweep(
    scenario: Annotated[list[str] | None, typer.Argument(help=xr.SCENARIOS + " All seven by default.")] = None,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            "--accelerator", "-a", help="Use the official costs of this accelerator: A to M at 4K, or A/8K. Repeatable."
        ),
    ] = None,
    device: xr.Devices = (),
    workload: xr.Workload = "native",
    size: xr.Size = "full",
    recipe: Annotated[
        list[str],
        typer.Option("--recipe", help="Recipe of the models on --device: MODEL=RECIPE, or RECIPE for all. Repeatable."),
    ] = ("original",),
    scheduler: Annotated[
        list[str],
        typer.Option("--scheduler", help="Scheduler: fifo, edf, latency-greedy, edp-greedy. Repeatable."),
    ] = ("latency-greedy",),
    seconds: xr.Horizon = 1.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of runs of each cell, one per seed.")] = 20,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compute expectations over all outcomes instead of seeds; needs --compat v0.1."),
    ] = False,
    compat: xr.Compat = None,
    preempt: xr.Preempt = False,
    probability: xr.Probabilities = (),
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    workers: Annotated[int, typer.Option("--workers", help="Simulate in this many processes.")] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="Address of a Ray cluster to simulate on instead.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write an HTML page with the scores as a heat map to this file.")
    ] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Score scenarios on several accelerators or devices, with several recipes, schedulers and probabilities."""
    from jettison.reports.xr_page import write_xr
    from jettison.xr.sessions import sweep_scenarios

    common.begin(quiet, json, page)
    result = sweep_scenarios(
        scenario or (), accelerators=accelerator or (), devices=device, workload=workload, size=size,
        recipes={name: xr.recipes([name]) for name in recipe}, schedulers=scheduler, seconds=seconds, seeds=seeds,
        exact=exact, compat=compat, preempt=preempt, probabilities=xr.probabilities(probability), jitter=jitter,
        drop_penalty=drop_penalty, workers=workers, address=address,
    )  # fmt: skip
    lines = [[row, *(f"{score:.1f}" for score in line)] for row, line in zip(result.rows, result.means, strict=True)]
    common.table("scenario", *result.columns, rows=lines)
    for cell in result.cells if len(result.cells) <= 12 else ():
        if cell.summary and cell.summary.count > 1:
            interval = f"95 % interval {cell.summary.low:.3f} to {cell.summary.high:.3f}"
            common.out.print(f"{cell.scenario}, {cell.column}, {cell.scheduler}: {interval}", style="dim")
    if page is not None:
        kind = "exact expectations" if exact else f"means over {seeds} seeds"
        heat_map = {"title": "Scenario scores", "caption": f"0 to 100, {kind}", "rows": result.rows}
        write_xr(page, "XRBench sweep", maps=[heat_map | {"columns": result.columns, "values": result.means}])
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(result.to_dict(), json)


def live(
    scenario: xr.Scenario,
    size: xr.Size = "small",
    recipe: xr.Recipes = (),
    file: Annotated[
        list[str],
        typer.Option("--model", help="MODEL=FILE: run this .onnx file or checkpoint as the model. Repeatable."),
    ] = (),
    offload: Annotated[
        list[str],
        typer.Option(
            "--offload", help="MODEL=HOST:PORT: run the model on this worker of `jettison offload serve`. Repeatable."
        ),
    ] = (),
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File with the token of the workers.")] = None,
    units: xr.Units = 1,
    threads: xr.Threads = 1,
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 10.0,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Time every model this many times before the run; the medians are used.")
    ] = 15,
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    trace: xr.Trace = None,
    page: xr.Page = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Run a scenario on this machine in real time, and simulate the same run for comparison."""
    from jettison.offload.service.endpoint import read_token
    from jettison.xr.results import write_page
    from jettison.xr.sessions import live_scenario
    from jettison.xr.trace import write_trace

    common.begin(quiet, json, page, trace)
    if offload and token_file is None:
        raise UsageError("--offload needs the workers' token: --token-file FILE")
    token = read_token(token_file) if offload else b""
    session = live_scenario(
        scenario, size=size, recipes=xr.recipes(recipe), files=xr.pairs("--model", file), units=units,
        threads=threads, scheduler=scheduler, seconds=seconds, rounds=rounds, jitter=jitter,
        drop_penalty=drop_penalty, seed=seed, offload=xr.pairs("--offload", offload), token=token,
    )  # fmt: skip
    measured = list(session.data["costs"].values())  # one per unit: model -> cost
    latencies = {
        name: " ".join(f"{unit[name]['latency_ms']:.2f}" for unit in measured if name in unit)
        for name in session.data["score"]["models"]
    }
    xr.print_models(session.data["score"], latencies)
    index_of = {"live": 0, "simulated": 1}  # in the timelines and scores of the session
    for name, index in index_of.items():
        timeline, score = session.timelines[index], session.scores[index]
        common.out.print(f"[bold]{name:<9} {score.overall:.2f}[/bold], dropped {timeline.drop_rate:.1%}")
    for name, outcome in session.data.get("offloaded", {}).items():
        common.out.print(f"{name} offloaded: {outcome.get('remote', 0)} frames remote, {outcome.get('local', 0)} local")
    if trace is not None:
        write_trace(session.timelines[0], trace)
        common.out.print(str(trace), soft_wrap=True, markup=False)
    if page is not None:
        pairs = {name: (session.timelines[index], session.scores[index]) for name, index in index_of.items()}
        write_page(page, f"{session.scenario.title} on this machine", pairs)
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(session.data, json)


def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Files that `jettison xr run` or `jettison xr live` wrote with --json.")
    ],
    drop_penalty: xr.Penalty = "code",
    page: xr.Page = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Compare runs: their scores, the scores of every model, and on a page their timelines."""
    from jettison.xr.results import compare as make_comparison

    common.begin(quiet, json, page)
    data = make_comparison(files, page, drop_penalty)
    models = list(dict.fromkeys(model for row in data["rows"] for model in row["models"]))
    rows = [
        [
            row["name"],
            row["scenario"],
            f"{row['overall']:.2f}",
            *(f"{row[part]:.3f}" for part in ("rt", "en", "qoe")),
            f"{row['drop_rate']:.1%}",
            *(f"{row['models'][model]:.1f}" if model in row["models"] else "" for model in models),
        ]
        for row in data["rows"]
    ]
    columns = ("run", "scenario", "score", "real-time", "energy", "QoE", "dropped", *models)
    common.table(*columns, rows=rows, text=("scenario",))
    if page is not None:
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(data, json)


def tune(
    scenario: xr.Scenario,
    device: Annotated[
        str,
        typer.Option("--device", help="Where latencies are from: this (measured on this machine), or a device's name."),
    ] = "this",
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Recipe that may be chosen, such as folded, bfloat16 or folded+w8. Repeatable."),
    ] = None,
    size: xr.Size = "small",
    units: xr.Units = 1,
    threads: xr.Threads = 1,
    floor: Annotated[
        float, typer.Option("--floor", help="Accuracy score that a recipe must keep at least, from 0 to 1.")
    ] = 0.9,
    quality: Annotated[
        Path | None,
        typer.Option("--quality", help="YAML file with the quality measured on data: model -> recipe -> value."),
    ] = None,
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 2.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of simulated runs that each score averages.")] = 3,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Time every recipe this many times; the medians are used.")
    ] = 9,
    live: Annotated[
        float, typer.Option("--live", help="Seconds of a live run before and after tuning; 0 for none.")
    ] = 0.0,
    drop_penalty: xr.Penalty = "code",
    page: xr.Page = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose a recipe for every model such that the score of the scenario rises most."""
    from jettison.core.documents import read_yaml
    from jettison.xr.definitions import find_scenario
    from jettison.xr.frames import check_run
    from jettison.xr.tune import RECIPES, check_runs
    from jettison.xr.tune import tune as find_best

    common.begin(quiet, json, page)
    if live and device != "this":
        raise UsageError(f"live = {live:g}, device = {device!r}: only this machine can run live")
    check_run(1e3 * (live or seconds), seed)
    opened = find_scenario(scenario)
    measured = None if quality is None else read_yaml(quality, "quality")
    if quality is not None and measured is None:
        raise UsageError(f"quality {quality} is empty: a mapping model -> recipe -> what was measured is needed")
    tuned = find_best(
        opened, device=device, recipes=recipe or RECIPES, size=size, units=units, threads=threads, floor=floor,
        quality=measured, scheduler=scheduler, horizon_ms=1e3 * seconds, seeds=seeds, rounds=rounds,
        drop_penalty=drop_penalty,
    )  # fmt: skip
    rows = [
        [option.model, option.recipe, " ".join(f"{ms:.2f}" for ms in option.latency_ms), f"{option.energy_mj:.1f}",
         f"{option.accuracy:.3f}", option.kind, "chosen" if tuned.choice[option.model] == option.recipe else ""]
        for option in tuned.options
    ]  # fmt: skip
    common.table("model", "recipe", "ms", "mJ", "accuracy", "which is", "", rows=rows, text=("recipe", "which is", ""))
    for key, reason in tuned.left_out.items():
        common.out.print(f"left out: {key}: {reason}", style="dim", markup=False, soft_wrap=True)
    common.out.print()
    for model, chosen, score in tuned.steps:
        common.out.print(f"{model}: {chosen} -> {score:.2f}", markup=False)
    common.out.print(f"[bold]score {tuned.before:.2f} before, {tuned.after:.2f} after[/bold] (simulated)")
    data = tuned.to_dict()
    if live or page is not None:
        data["runs"] = check_runs(
            opened, tuned, live_seconds=live, size=size, units=units, threads=threads, scheduler=scheduler,
            horizon_ms=1e3 * seconds, seed=seed, drop_penalty=drop_penalty, page=page,
        )  # fmt: skip
        for name, row in data["runs"].items():
            common.out.print(f"{name}: {row['score']['overall']:.2f}, dropped {row['drop_rate']:.1%}")
    if page is not None:
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(data, json)
