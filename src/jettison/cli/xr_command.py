"""jettison xr"""

from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.cli import xr_options as xr
from jettison.core.errors import UsageError
from jettison.core.numbers import check_number


def register(app: typer.Typer) -> None:
    room = typer.Typer(
        no_args_is_help=True,
        help="XRBench: real-time perception, several models at once; simulated, live, tuned.",
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
        room.command(function.__name__, epilog=common.example(*examples))(function)
    app.add_typer(room, name="xr")


def run(
    scenario: xr.Scenario,
    accelerator: xr.Accelerator = None,
    device: xr.Devices = (),
    costs: xr.CostFile = None,
    workload: xr.Workload = "native",
    size: xr.Size = "full",
    recipe: xr.Recipes = (),
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 1.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs to take the mean over; the first one is shown.")] = 1,
    compat: xr.Compat = None,
    preempt: xr.Preempt = False,
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    trace: xr.Trace = None,
    page: xr.Page = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Append the schedule, in the official columns.")] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Simulate a scenario on known costs: an accelerator's, a device's roofline, or a file's."""
    from jettison.xr.definitions import find_scenario
    from jettison.xr.dispatch import check_scheduler
    from jettison.xr.frames import check_run
    from jettison.xr.official import write_schedule
    from jettison.xr.results import result
    from jettison.xr.scores import check_penalty, score, summary
    from jettison.xr.simulator import check_compat, simulate
    from jettison.xr.sources import find_costs
    from jettison.xr.sweep import MOST_SEEDS

    common.begin(quiet, json, page, trace, csv)
    check_number("seeds", seeds, 1, MOST_SEEDS, whole=True)
    check_run(1e3 * seconds, seed)  # before models are counted
    check_penalty(drop_penalty)
    check_scheduler(scheduler)
    check_compat(compat, preempt)
    found = find_scenario(scenario)
    known = find_costs(
        found, accelerator=accelerator, devices=device, file=costs, workload=workload, size=size,
        recipes=xr.recipes(recipe),
    )  # fmt: skip
    options: dict[str, Any] = {"scheduler": scheduler, "compat": compat, "preempt": preempt, "jitter": jitter}
    runs = [
        simulate(found, known, horizon_ms=1e3 * seconds, seed=each, **options) for each in range(seed, seed + seeds)
    ]
    scores = [score(each, drop_penalty=drop_penalty) for each in runs]
    data = result(runs[0], scores[0])
    xr.print_models(data["score"])
    common.out.print(f"\n[bold]score {scores[0].overall:.3f}[/bold], dropped {runs[0].drop_rate:.1%}, units busy "
                     f"{', '.join(f'{each:.0%}' for each in data['busy'])}")  # fmt: skip
    if compat:
        common.out.print(f"as the official program prints it: {scores[0].overall_logged:.3f}", style="dim")
    if seeds > 1:
        told = summary([each.overall for each in scores])
        data["summary"] = vars(told)
        common.out.print(f"{seeds} seeds: mean {told.mean:.3f}, 95 % interval {told.low:.3f} to {told.high:.3f}")
    if csv is not None:
        write_schedule(runs[0], csv)
    xr.write(runs[0], scores[0], found.title, trace, page)
    common.finish(data, json)


def sweep(
    scenario: Annotated[list[str] | None, typer.Argument(help=xr.SCENARIOS + " Else all seven.")] = None,
    accelerator: Annotated[list[str] | None, typer.Option("--accelerator", "-a", help="Repeatable.")] = None,
    device: xr.Devices = (),
    workload: xr.Workload = "native",
    size: xr.Size = "full",
    recipe: Annotated[list[str], typer.Option("--recipe", help="On devices. Repeatable.")] = ("original",),
    scheduler: Annotated[list[str], typer.Option("--scheduler", help="Repeatable.")] = ("latency-greedy",),
    seconds: xr.Horizon = 1.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each cell.")] = 20,
    exact: Annotated[bool, typer.Option("--exact", help="With --compat v0.1: all outcomes, no seeds.")] = False,
    compat: xr.Compat = None,
    preempt: xr.Preempt = False,
    probability: xr.Probabilities = (),
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    workers: Annotated[int, typer.Option("--workers", help="Processes.")] = 1,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster, to run there.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write the scores as heat maps.")] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Scores of scenarios by accelerators, devices, recipes, schedulers, probabilities, over seeds."""
    from jettison.reports.xr_page import write_xr
    from jettison.xr.definitions import accelerator_names, find_scenario, scenario_names
    from jettison.xr.sources import find_costs
    from jettison.xr.sweep import check_sweep, table, vary
    from jettison.xr.sweep import sweep as make_sweep

    common.begin(quiet, json, page)
    chances = xr.probabilities(probability)
    if accelerator and device:
        raise UsageError("a sweep over accelerators or over devices: one of them")
    if tuple(recipe) != ("original",) and not device:
        raise UsageError(f"recipe = {', '.join(recipe)}: the table of accelerators knows no recipes; say --device")
    options: dict[str, Any] = {"compat": compat, "preempt": preempt, "jitter": jitter, "horizon_ms": 1e3 * seconds}
    check_sweep(scheduler, seeds, exact, drop_penalty, workers, address, options)  # before models are counted
    scenarios = vary([find_scenario(name) for name in dict.fromkeys(scenario or scenario_names())], chances)
    if device:
        columns = {
            f"{name}, {each}" if len(recipe) > 1 else name: {
                found.name: find_costs(found, devices=[name], workload=workload, size=size, recipes=xr.recipes([each]))
                for found in scenarios
            }
            for name in device
            for each in recipe
        }
    else:
        columns = {
            name: {found.name: find_costs(found, accelerator=name, workload=workload, size=size) for found in scenarios}
            for name in accelerator or accelerator_names()
        }
    cells = make_sweep(
        scenarios, columns, schedulers=scheduler, seeds=seeds, exact=exact, drop_penalty=drop_penalty,
        workers=workers, address=address, **options,
    )  # fmt: skip
    rows, names, means = table(cells, mean=all(len(each) == 1 for each in chances.values()))
    lines = [[row, *(f"{each:.1f}" for each in line)] for row, line in zip(rows, means, strict=True)]
    common.table("scenario", *names, rows=lines)
    for cell in cells if len(cells) <= 12 else ():
        if cell.summary and cell.summary.count > 1:
            interval = f"95 % interval {cell.summary.low:.3f} to {cell.summary.high:.3f}"
            common.out.print(f"{cell.scenario}, {cell.column}, {cell.scheduler}: {interval}", style="dim")
    if page is not None:
        said = "exact expectations" if exact else f"means over {seeds} seeds"
        drawn = {"title": "Scenario scores", "caption": f"0 to 100, {said}", "rows": rows, "columns": names}
        write_xr(page, "XRBench sweep", maps=[drawn | {"values": means}])
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish({"rows": rows, "columns": names, "means": means, "cells": [cell.to_dict() for cell in cells]}, json)


def live(
    scenario: xr.Scenario,
    size: xr.Size = "small",
    recipe: xr.Recipes = (),
    file: Annotated[list[str], typer.Option("--model", help="MODEL=FILE: .onnx or a checkpoint. Repeatable.")] = (),
    units: xr.Units = 1,
    threads: xr.Threads = 1,
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 10.0,
    rounds: Annotated[int, typer.Option("--rounds", help="Of timing every model first; medians count.")] = 15,
    jitter: xr.Jitter = True,
    drop_penalty: xr.Penalty = "code",
    trace: xr.Trace = None,
    page: xr.Page = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Run a scenario on this machine by the clock: frames arrive, models run, deadlines pass. And simulate the same."""
    from jettison.xr.definitions import find_scenario
    from jettison.xr.dispatch import check_scheduler
    from jettison.xr.frames import check_run
    from jettison.xr.live import run_live, scenario_variants
    from jettison.xr.results import result, write_page
    from jettison.xr.scores import check_penalty, score
    from jettison.xr.simulator import simulate
    from jettison.xr.trace import write_trace
    from jettison.xr.units import Units as Running

    common.begin(quiet, json, page, trace)
    found = find_scenario(scenario)
    variants = scenario_variants(found, size, xr.recipes(recipe), xr.pairs("--model", file))
    options: dict[str, Any] = {"scheduler": scheduler, "horizon_ms": 1e3 * seconds, "seed": seed, "jitter": jitter}
    check_scheduler(scheduler)  # before models are loaded and timed
    check_run(1e3 * seconds, seed)
    check_penalty(drop_penalty)
    check_number("rounds", rounds, 1, 10_000, whole=True)
    with Running(variants, units, threads) as running:
        known = running.measure(rounds)
        lived = run_live(found, running, known, **options)
    simulated = simulate(found, known, **options)
    scores = [score(each, drop_penalty=drop_penalty) for each in (lived, simulated)]
    data = result(lived, scores[0]) | {"costs": known.to_dict(), "simulated": result(simulated, scores[1])}
    latencies = {name: " ".join(f"{row[name].latency_ms:.2f}" for row in known.rows) for name in variants}
    xr.print_models(data["score"], latencies)
    for name, timeline, scored in zip(("live", "simulated"), (lived, simulated), scores, strict=True):
        common.out.print(f"[bold]{name:<9} {scored.overall:.2f}[/bold], dropped {timeline.drop_rate:.1%}")
    if trace is not None:
        write_trace(lived, trace)
        common.out.print(str(trace), soft_wrap=True, markup=False)
    if page is not None:
        pairs = {"live": (lived, scores[0]), "simulated": (simulated, scores[1])}
        write_page(page, f"{found.title} on this machine", pairs)
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(data, json)


def compare(
    files: Annotated[list[Path], typer.Argument(help="Files that `jettison xr run` or `live` wrote with --json.")],
    drop_penalty: xr.Penalty = "code",
    page: xr.Page = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Runs beside each other: scores, model by model, and their timelines."""
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
    device: Annotated[str, typer.Option("--device", help="this, timed; or a name of `jettison devices`.")] = "this",
    recipe: Annotated[list[str] | None, typer.Option("--recipe", help="To choose among. Repeatable.")] = None,
    size: xr.Size = "small",
    units: xr.Units = 1,
    threads: xr.Threads = 1,
    floor: Annotated[float, typer.Option("--floor", help="The accuracy score a recipe must keep, 0 to 1.")] = 0.9,
    quality: Annotated[
        Path | None, typer.Option("--quality", help="YAML: model -> recipe -> what was measured on data.")
    ] = None,
    scheduler: xr.Scheduler = "latency-greedy",
    seconds: xr.Horizon = 2.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Simulated runs behind each score.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", help="Of timing every recipe; medians count.")] = 9,
    live: Annotated[float, typer.Option("--live", help="Seconds to run live before and after; 0: not.")] = 0.0,
    drop_penalty: xr.Penalty = "code",
    page: xr.Page = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Choose a recipe for every model so that the scenario's score rises most."""
    from jettison.core.documents import read_yaml
    from jettison.xr.definitions import find_scenario
    from jettison.xr.frames import check_run
    from jettison.xr.tune import RECIPES, check_runs
    from jettison.xr.tune import tune as find_best

    common.begin(quiet, json, page)
    if live and device != "this":
        raise UsageError(f"live = {live:g}, device = {device!r}: only this machine can run live")
    check_run(1e3 * (live or seconds), seed)
    found = find_scenario(scenario)
    measured = None if quality is None else read_yaml(quality, "quality")
    if quality is not None and measured is None:
        raise UsageError(f"quality {quality} is empty: a mapping model -> recipe -> what was measured is needed")
    tuned = find_best(
        found, device=device, recipes=recipe or RECIPES, size=size, units=units, threads=threads, floor=floor,
        quality=measured, scheduler=scheduler, horizon_ms=1e3 * seconds, seeds=seeds, rounds=rounds,
        drop_penalty=drop_penalty,
    )  # fmt: skip
    rows = [
        [each.model, each.recipe, " ".join(f"{ms:.2f}" for ms in each.latency_ms), f"{each.energy_mj:.1f}",
         f"{each.accuracy:.3f}", each.kind, "chosen" if tuned.choice[each.model] == each.recipe else ""]
        for each in tuned.options
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
            found, tuned, live_seconds=live, size=size, units=units, threads=threads, scheduler=scheduler,
            horizon_ms=1e3 * seconds, seed=seed, drop_penalty=drop_penalty, page=page,
        )  # fmt: skip
        for name, row in data["runs"].items():
            common.out.print(f"{name}: {row['score']['overall']:.2f}, dropped {row['drop_rate']:.1%}")
    if page is not None:
        common.out.print(str(page), soft_wrap=True, markup=False)
    common.finish(data, json)
