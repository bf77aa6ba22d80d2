"""What the commands of `jettison xr` share: options, the table of models, files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError

SCENARIOS = "social-interaction-a, -b, outdoor-activity-a, -b, ar-assistant, ar-gaming, vr-gaming, or FILE.yaml."
Scenario = Annotated[str, typer.Argument(help=SCENARIOS)]
Accelerator = Annotated[str | None, typer.Option("--accelerator", "-a", help="A to M at 4K, or A/8K: official costs.")]
Devices = Annotated[list[str], typer.Option("--device", help="A unit, by its roofline. Repeatable.")]
CostFile = Annotated[Path | None, typer.Option("--costs", help="YAML or JSON: unit -> model -> latency_ms, energy_mj.")]
Workload = Annotated[str, typer.Option("--workload", help="Of a roofline: native, or xrbench-v0.1 (frozen layers).")]
Size = Annotated[str, typer.Option("--size", help="Of native models: full, half, small, tiny.")]
Recipes = Annotated[
    list[str],
    typer.Option("--recipe", help="MODEL=RECIPE, or RECIPE for all: folded, bfloat16, w8, ... Repeatable."),
]
Scheduler = Annotated[str, typer.Option("--scheduler", help="fifo, edf, latency-greedy, edp-greedy.")]
Horizon = Annotated[float, typer.Option("--seconds", help="How long frames arrive.")]
Compat = Annotated[str | None, typer.Option("--compat", help="v0.1: the official runtime, 700 ms, with its accidents.")]
Preempt = Annotated[bool, typer.Option("--preempt", help="Running frames yield at the ends of their layers.")]
Jitter = Annotated[bool, typer.Option("--jitter/--no-jitter", help="Whether sensors deliver a little off time.")]
Probabilities = Annotated[
    list[str],
    typer.Option("--probability", help="MODEL=P, that a frame of it is asked for; a row for each. Repeatable."),
]
Penalty = Annotated[str, typer.Option("--drop-penalty", help="code: drops count twice, as published; paper: once.")]
Units = Annotated[int, typer.Option("--units", help="Processes that run models beside each other.")]
Threads = Annotated[int, typer.Option("--threads", help="Threads of each of them.")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write a trace for ui.perfetto.dev.")]
Page = Annotated[Path | None, typer.Option("--page", help="Write an HTML page with the timeline.")]


def print_models(scored: dict[str, Any], latencies: dict[str, str] | None = None) -> None:
    rows = [
        [name, *([latencies[name]] if latencies else []), str(m["executed"]), str(m["dropped"]), str(m["skipped"]),
         *(f"{m[part]:.3f}" for part in ("rt", "en", "acc", "qoe")), f"{m['score']:.2f}"]
        for name, m in scored["models"].items()
    ]  # fmt: skip
    columns = ("executed", "dropped", "not asked", "real-time", "energy", "accuracy", "QoE", "score")
    common.table("model", *(["ms"] if latencies else []), *columns, rows=rows)


def write(timeline, scored, title: str, trace: Path | None, page: Path | None) -> None:
    from jettison.xr.results import write_page
    from jettison.xr.trace import write_trace

    if trace is not None:
        write_trace(timeline, trace)
    if page is not None:
        write_page(page, title, {"run": (timeline, scored)})
    for file in filter(None, (trace, page)):
        common.out.print(str(file), soft_wrap=True, markup=False)


def recipes(given: list[str]) -> dict[str, str]:
    """``MODEL=RECIPE``, or ``RECIPE`` for all."""
    return dict(each.split("=", 1) if "=" in each else ("*", each) for each in given)


def pairs(option: str, given: list[str]) -> dict[str, str]:
    for each in given:
        if "=" not in each:
            raise UsageError(f"{option} {each!r}: MODEL=VALUE is needed")
    return dict(each.split("=", 1) for each in given)


def probabilities(given: list[str]) -> dict[str, list[float]]:
    """``MODEL=P``, several of a model too."""
    found: dict[str, list[float]] = {}
    for each in given:
        model, _, value = each.partition("=")
        try:
            found.setdefault(model, []).append(float(value))
        except ValueError as error:
            raise UsageError(f"--probability {each!r}: MODEL=P is needed, P from 0 to 1") from error
    return found
