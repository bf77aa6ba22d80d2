"""``fit``: plan, compress, recover, evaluate and report in one run on one folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from jettison.core.errors import UsageError
from jettison.core.files import write_json
from jettison.core.locks import locked
from jettison.core.numbers import check_seed
from jettison.core.progress import logged, say
from jettison.devices.device import find_device
from jettison.domains.domain import Sources, find_domain
from jettison.formats.dequantized import open_source
from jettison.formats.manifest import command_line, read_manifest, update_manifest
from jettison.formats.runtimes import find_runtime
from jettison.graph.folder import ModelFolder
from jettison.pipeline import depth, program
from jettison.pipeline.compression import JOURNAL, check_run_folder, compress
from jettison.pipeline.depth import check_depth
from jettison.pipeline.evaluation import TEXTS, TOKENS, evaluate
from jettison.pipeline.exporting import check_formats, export_formats, format_names
from jettison.pipeline.first_step import first_step
from jettison.pipeline.program import check_program
from jettison.pipeline.program_curve import measure_curve
from jettison.pipeline.recovery import recover
from jettison.pipeline.showing import show
from jettison.pipeline.tasks import check_tasks, compare_tasks, evaluate_tasks
from jettison.planning.budget import check_budget, check_budgets, parse_latency, parse_speedup
from jettison.planning.cost import CONTEXT, Setting, predict
from jettison.planning.depth import plan_latency
from jettison.planning.estimate import how_long, how_long_training
from jettison.planning.forecast import forecast
from jettison.planning.picture import plan_data
from jettison.planning.planner import check_losses, make_plan
from jettison.planning.program import plan_program
from jettison.recipe.recipe import Recipe, load_recipe, with_images, with_windows
from jettison.reports.depth import depth_figures
from jettison.reports.page import write_report
from jettison.reports.program import program_figures
from jettison.reports.run import SPEED, read_speed

UNCHANGED = Recipe("unchanged", steps=())
EXPORTS = "exports"  # the folder in that of the run


@logged("out")
def fit(
    model: str | Path,
    *,
    out: str | Path,
    device: str = "this",
    tps: float | None = None,
    memory: str | float | None = None,
    latency: str | float | None = None,
    fps: float | None = None,
    speedup: str | float | None = None,
    context: int = CONTEXT,
    runtime: str | None = None,
    recovery: bool = True,
    losses: str = "auto",
    refine: int = 0,
    recipe: str | Path | Recipe | None = None,
    changes: Iterable[str] = (),
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    tasks: Iterable[str] = (),
    items: int | None = None,
    images: str | Path | None = None,
    count: int | None = None,
    seed: int = 0,
    to: str | Iterable[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make ``model`` fit a device and a budget: write a smaller, recovered checkpoint and report.html into ``out``.

    A killed run continues when ``fit`` is called again.

    model: an original: ``scribe``, a folder or a hub id.
    out: the folder of the run, new or of the same run.
    device: what the result is to run on, see ``find_device``.
    tps, memory, context: the budget (tokens per second; bytes or a string such as "3GB"; tokens), see ``make_plan``.
    latency, fps: the budget of an image classifier or perception model (a share of the original's latency such as
    "0.7x"; images per second), see ``plan_latency``.
    speedup: the budget of a diffusion pipeline (how many times as fast), see ``plan_program``.
    runtime: the target runtime that must load the result.
    recovery, losses, refine: how to plan, see ``make_plan``; with ``auto``, losses come from gradients if the model
    fits in memory, else from the prior.
    recipe: compress by this recipe and do not plan.
    changes: of the recipe, ``verb.option=value``.
    texts, tokens: what quality is measured on, see ``evaluate``.
    tasks, items: see ``evaluate_tasks``.
    images, count: what the quality of an image classifier is measured on; it is also calibrated on ``images``, unless
    the recipe names other ones.
    seed: of calibration, planning and recovery.
    to: formats that the result is written in at the end, with its adapter apart, in ``out``/exports, and checked; see
    ``export``.
    dry_run: do no work, and return ``plan`` and ``forecast`` (time, memory, disk).

    Returns the results of ``original``, ``quantized`` and, if the recipe recovers, ``recovered``; ``plan`` (recipe and
    predicted cost); for tasks after a recovery, ``tasks`` (see ``compare_tasks``); ``depth``, what a depth step pruned
    (see ``depth_figures``); ``program``, what a program step found (see ``program_figures``); ``exports``, with ``to``,
    the result of ``export``; and ``not_in_transformers``, what transformers cannot load, if anything.
    Raises UsageError for arguments that are not valid, a budget that no plan meets, and a folder that was measured on
    other data; further as ``compress`` and ``recover``.
    """
    changes, texts, tasks = list(changes), [str(text) for text in texts], list(tasks)
    formats = format_names(to) if to else []
    source, target = open_source(model), find_device(device)
    budgets = {"tps": tps, "memory": memory, "latency": latency, "fps": fps, "speedup": speedup}
    check_budget(source, budgets, device=device, recipe=recipe)
    if not source.anatomy.family.chain:
        texts = []
        if tasks:
            source.require_text("tasks are for language models")
    by_bits = recipe is None and source.anatomy.family.chain
    _check_request(tps, memory, runtime, losses, refine, seed, tasks, items, planned=by_bits)
    sources = Sources(tuple(texts), tokens, images=images, count=count)
    find_domain(source).check_sources(source, sources)
    if source.anatomy.family.chain and not texts:
        raise UsageError(f"no text to measure on: {', '.join(TEXTS)}, or a UTF-8 file")
    setting, pictured = Setting(context), None
    out = check_run_folder(out)
    if by_bits:
        plan = make_plan(
            source, device=target, tps=tps, memory=memory, context=context, runtime=runtime, recovery=recovery,
            losses=_losses(source, losses), refine=refine, changes=changes, seed=seed,
        )  # fmt: skip
        chosen, pictured = plan.recipe, plan_data(plan)
    elif recipe is None and speedup is not None:
        chosen = plan_program(source, speedup=speedup, changes=changes)
    elif recipe is None:
        chosen = plan_latency(
            source, latency=latency, fps=fps, changes=changes, images=images, folder=None if dry_run else out
        )
    else:
        chosen = load_recipe(recipe, changes)
    if not chosen.steps:
        raise UsageError(
            f"{model} meets this budget as it is: there is nothing to compress. Set a tighter budget, or give a recipe"
        )
    chosen = with_windows(chosen, source.positions)
    if not chosen.calibration.get("images"):
        chosen = with_images(chosen, images)
    if seed and chosen.of("recover") and not any(change.startswith("recover.seed=") for change in changes):
        chosen = load_recipe(chosen, [f"recover.seed={seed}"])
    if formats:
        check_formats(source, chosen, runtime, formats)
    predicted, asked = {}, {"device": device, "context": context}
    if texts:
        for name, candidate in (("original", UNCHANGED), ("result", chosen)):
            cost = predict(source, candidate, target, setting)
            predicted[name] = {"tokens_per_second": cost.tokens_per_second, "memory": cost.memory}
    planned = {"recipe": chosen.to_dict(), "predicted": predicted.get("result", {}) | asked}
    if first_step(chosen, "depth"):
        check_depth(source, chosen)
    if first_step(chosen, "program"):
        check_program(source, chosen)
    for step in chosen.of("recover"):
        find_domain(source).training_digests(chosen, step)  # raises, before any work, if its data is missing
    if dry_run:
        expected = forecast(model, chosen, texts=texts, tokens=tokens, runtime=runtime, images=images, count=count)
        if tasks:
            expected["warnings"].append(f"what {', '.join(tasks)} will take is not counted")
        return {"plan": planned, "forecast": expected}
    say(f"recipe {chosen.name}: {chosen.use}")
    for reason in chosen.why:
        say(f"  {reason}")
    if not any((out / folder / JOURNAL).exists() for folder in ("", depth.FOLDER, program.FOLDER)):
        for line in how_long(source, chosen, texts, tokens) if texts else how_long_training(source, chosen):
            say(line)

    request = {"model": str(model), "device": device, "tps": tps, "memory": memory, "context": context}
    request |= {"recipe": None if recipe is None else chosen.name, "changes": changes, "texts": texts, "tasks": tasks}
    request |= {"contents": find_domain(source).contents(sources), "tokens": tokens}
    request |= {"items": items, "seed": seed, "predicted": predicted, "engine": runtime}
    if images:
        request |= {"images": str(images)}
    if not texts:
        request |= {"count": count}
    request |= {"latency": parse_latency(latency)} if latency is not None else {}
    request |= {"fps": fps} if fps else {}
    request |= {"speedup": parse_speedup(speedup)} if speedup is not None else {}
    if by_bits:
        request |= {"recovery": recovery, "losses": losses, "refine": refine}
    options = {"device": device, "tps": tps, "memory": memory, "context": context, "runtime": runtime, "losses": losses}
    options |= {"latency": latency, "fps": fps, "speedup": speedup}
    options |= {"recovery": recovery, "refine": refine, "recipe": recipe, "set": changes, "text": texts, "tasks": tasks}
    defaults = {"device": "this", "context": CONTEXT, "losses": "auto", "recovery": True, "refine": 0, "text": TEXTS}
    options |= {"items": items, "images": images, "count": count, "seed": seed, "to": ",".join(formats) or None}
    request["command"] = command_line("fit", model, options, defaults | {"seed": 0})
    with locked(out):
        compress(model, chosen, out, seed=seed, runtime=runtime)
        _check_measured(out, request)
        update_manifest(out, request=request, plan=pictured)
        stages: dict[str, dict[str, Any]] = {
            "original": {"model": model},
            "quantized": {"model": out, "adapter": False},
        }
        if chosen.of("recover"):
            stages["recovered"] = {"model": out}
        for stage, measured in stages.items():
            if stage == "recovered":
                recover(out)
            # After recovery the quantized stage can no longer be measured: scales and weights may have changed.
            if stage not in read_manifest(out).get("results", {}):
                _measure(out, stage, measured, model, sources, tasks, items)
        results, compared = read_manifest(out)["results"], {}
        if tasks and "recovered" in results:
            compared["tasks"] = compare_tasks(*(results[stage]["tasks"] for stage in stages))
            update_manifest(out, **compared)
        if first_step(chosen, "program"):
            measure_curve(source, chosen, out, seed)
        for name, figures in (("depth", depth_figures(out)), ("program", program_figures(out))):
            compared |= {name: figures} if figures else {}
        if notes := read_manifest(out)["not_in_transformers"]:
            compared["not_in_transformers"] = notes
        write_report(out)
        if formats:
            compared["exports"] = export_formats(out, out / EXPORTS, formats, verify=True, texts=texts)
    return {"plan": planned} | results | compared


def _check_request(
    tps: float | None, memory: str | float | None, runtime: str | None, losses: str, refine: int, seed: int,
    tasks: list[str], items: int | None, planned: bool,
) -> None:  # fmt: skip
    """Raise UsageError, before any work, for arguments that are not valid, also for those that a recipe makes unused.

    planned: there is no recipe, so a budget is needed.
    """
    check_budgets(tps, memory, needed=planned)
    check_losses(losses, refine)
    check_seed(seed)
    if runtime is not None and (refusal := find_runtime(runtime).no_writer):
        raise UsageError(refusal)
    if tasks:
        check_tasks(tasks, items)
    elif items is not None:
        raise UsageError(f"items = {items} without tasks: name some")


def _losses(source: ModelFolder, losses: str) -> str:
    """Return the kind of losses for the planner.

    ``auto`` becomes ``gradients`` if 8 bytes per parameter (the model in float32, and its activations) fit in memory,
    else ``prior``.
    """
    if losses != "auto":
        return losses
    return "gradients" if 8 * source.anatomy.parameters < psutil.virtual_memory().available else "prior"


def _measure(
    out: Path, stage: str, measured: dict, original: str | Path, sources: Sources, tasks: list[str], items: int | None
) -> None:  # fmt: skip
    """Measure a stage of the run and store the result.

    Results that are the same in every run go into jettison.json; speed goes into speed.json.

    stage: ``original``, ``quantized`` or ``recovered``.
    measured: the arguments ``model`` and ``adapter`` of the measuring functions.
    """
    data = {"texts": sources.texts, "tokens": sources.tokens, "images": sources.images, "count": sources.count}
    result = evaluate(**measured, **data, teacher=original)
    samples = show(**measured, original=original, sources=sources)
    speed = samples.pop("speed")
    result |= samples
    if tasks:
        result["tasks"] = evaluate_tasks(**measured, tasks=tasks, items=items)
    file = out / SPEED
    stages = read_speed(file).get("stages", {}) if file.exists() else {}
    write_json(
        file,
        {
            "machine": find_device("this").title.removeprefix("This machine: "),
            "stages": stages | {stage: speed},
        },
    )
    update_manifest(out, results=read_manifest(out).get("results", {}) | {stage: result})


def _check_measured(out: Path, request: dict[str, Any]) -> None:
    """Raise UsageError if an earlier run into this folder measured on other data: stages could not be compared."""
    manifest = read_manifest(out)
    if not manifest.get("results"):
        return
    try:
        before, now = _measures(manifest["request"]), _measures(request)
    except KeyError as error:
        raise UsageError(f"{out} does not say on what it was measured ({error}): choose another folder") from None
    if before != now:
        raise UsageError(
            f"{out} was measured on {before}, not on {now}: continue with the same, or choose another folder"
        )


def _measures(request: dict[str, Any]) -> str:
    """Describe in words, with content hashes, the data that a request measures on."""
    number = request.get("count")
    if name := request.get("images"):
        return f"{name} ({request['contents'][name]}), {f'{number} images' if number else 'all images'}"
    if not request["texts"]:
        return f"{number} seeds" if number else "the usual number of seeds"
    texts = [f"{text} ({request['contents'][text]})" for text in request["texts"]]
    tokens = [f"{request['tokens']} tokens" if request["tokens"] else "all tokens"]
    limit = f" ({request['items']} items each)" if request["tasks"] and request["items"] else ""
    return ", ".join([*texts, *tokens, *request["tasks"]]) + limit
