"""Parts that the commands of `jettison xr` share: options, the table of models, writing files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jettison.cli import common
from jettison.core.errors import UsageError

SCENARIOS = (
    "The scenario: social-interaction-a, social-interaction-b, outdoor-activity-a, outdoor-activity-b, ar-assistant, "
    "ar-gaming, vr-gaming, or FILE.yaml."
)
Scenario = Annotated[str, typer.Argument(help=SCENARIOS)]
Accelerator = Annotated[
    str | None,
    typer.Option("--accelerator", "-a", help="Use the official costs of this accelerator: A to M at 4K, or A/8K."),
]
Devices = Annotated[
    list[str],
    typer.Option("--device", help="Use this device of `jettison devices` as a unit, by its roofline. Repeatable."),
]
CostFile = Annotated[
    Path | None,
    typer.Option("--costs", help="Read the costs from this YAML or JSON file: unit -> model -> latency_ms, energy_mj."),
]
Workload = Annotated[
    str,
    typer.Option(
        "--workload",
        help="What the roofline counts: native (the native models), or xrbench-v0.1 (the benchmark's fixed layers).",
    ),
]
Size = Annotated[str, typer.Option("--size", help="Size of the native models: full, half, small, tiny.")]
Recipes = Annotated[
    list[str],
    typer.Option(
        "--recipe", help="Recipe of a model, as MODEL=RECIPE, or RECIPE for all: folded, bfloat16, w8, ... Repeatable."
    ),
]
Offload = Annotated[
    list[str],
    typer.Option(
        "--offload",
        help="MODEL=REPORT: the model runs on a worker, with the times of this report of `jettison offload join`. "
        "Repeatable.",
    ),
]
Scheduler = Annotated[str, typer.Option("--scheduler", help="Scheduler: fifo, edf, latency-greedy, edp-greedy.")]
Horizon = Annotated[float, typer.Option("--seconds", help="Seconds during which frames arrive.")]
Compat = Annotated[
    str | None,
    typer.Option("--compat", help="v0.1: behave like the official program, with its 700 ms and its oddities."),
]
Preempt = Annotated[
    bool, typer.Option("--preempt", help="Let a running frame be interrupted at the end of each of its layers.")
]
Jitter = Annotated[
    bool, typer.Option("--jitter/--no-jitter", help="Whether sensors deliver frames slightly early or late.")
]
Probabilities = Annotated[
    list[str],
    typer.Option(
        "--probability", help="MODEL=P: probability that a frame of MODEL is requested; one row per value. Repeatable."
    ),
]
Penalty = Annotated[
    str,
    typer.Option(
        "--drop-penalty", help="Count dropped frames twice, as the published code does (code), or once (paper)."
    ),
]
Units = Annotated[int, typer.Option("--units", help="Number of processes that run models in parallel.")]
Threads = Annotated[int, typer.Option("--threads", help="Threads of each of these processes.")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write a trace for ui.perfetto.dev to this file.")]
Page = Annotated[Path | None, typer.Option("--page", help="Write an HTML page with the timeline to this file.")]


def print_models(scored: dict[str, Any], latencies: dict[str, str] | None = None) -> None:
    """Print a row per model: counts of frames, the four parts of its score, and the score.

    latencies: model -> text of its latencies in ms; None for no such column.
    """
    rows = [
        [name, *([latencies[name]] if latencies else []), str(m["executed"]), str(m["dropped"]), str(m["skipped"]),
         *(f"{m[part]:.3f}" for part in ("rt", "en", "acc", "qoe")), f"{m['score']:.2f}"]
        for name, m in scored["models"].items()
    ]  # fmt: skip
    columns = ("executed", "dropped", "not asked", "real-time", "energy", "accuracy", "QoE", "score")
    common.table("model", *(["ms"] if latencies else []), *columns, rows=rows)


def write(timeline, scored, title: str, trace: Path | None, page: Path | None) -> None:
    """Write the trace and the page of one run, where a path is set, and print these paths."""
    from jettison.xr.results import write_page
    from jettison.xr.trace import write_trace

    if trace is not None:
        write_trace(timeline, trace)
    if page is not None:
        write_page(page, title, {"run": (timeline, scored)})
    for file in filter(None, (trace, page)):
        common.out.print(str(file), soft_wrap=True, markup=False)


def recipes(texts: list[str]) -> dict[str, str]:
    """Parse ``MODEL=RECIPE``, or ``RECIPE`` for all models. Returns model -> recipe, with ``*`` for all."""
    return dict(text.split("=", 1) if "=" in text else ("*", text) for text in texts)


def pairs(option: str, texts: list[str]) -> dict[str, str]:
    """Parse the ``MODEL=VALUE`` values of an option. Raises UsageError for one without ``=``."""
    for text in texts:
        if "=" not in text:
            raise UsageError(f"{option} {text!r}: MODEL=VALUE is needed")
    return dict(text.split("=", 1) for text in texts)


def probabilities(texts: list[str]) -> dict[str, list[float]]:
    """Parse ``MODEL=P``; a model may come several times. Returns model -> probabilities.

    Raises UsageError where P is not a number.
    """
    values: dict[str, list[float]] = {}
    for text in texts:
        model, _, value = text.partition("=")
        try:
            values.setdefault(model, []).append(float(value))
        except ValueError as error:
            raise UsageError(f"--probability {text!r}: MODEL=P is needed, P from 0 to 1") from error
    return values
