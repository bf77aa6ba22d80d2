"""The page's section about depth: which blocks were pruned, what the search looked at, gates, losses, and the merge."""

from pathlib import Path
from typing import Any

from jettison.core.numbers import figures
from jettison.formats.depth_schema import Gates, Latency, Loss, Subnet, Without
from jettison.pipeline.depth import FOLDER
from jettison.pipeline.first_step import JOURNAL
from jettison.reports import charts, depth_charts
from jettison.reports.run import Run, read_entries, read_run, valid_entries

NO_BREAK = "\N{NO-BREAK SPACE}"
STAGES = {
    "supernet": "Supernet: blocks and their pruned twins together",
    "gates": "Gates and weights together",
    "progressive": "Progressive training: the blocks fade out",
    "finetune": "Finetuning",
}


def read_depth(run: Run) -> dict[str, Any] | None:
    """Return what a run records of its depth step; None for a run without one.

    The section ``depth`` of jettison.json, and of the journal: subnets (genome, accuracy, latency), losses (stage ->
    step -> loss), gates (one per block; [] if none were learned) and milliseconds (original, pruned; {} if they are
    missing). Damaged entries of the journal are left out.
    """
    section = run.manifest.get("depth")
    if not section:
        return None
    entries = read_entries(run.folder / FOLDER / JOURNAL, "how depth was pruned")
    subnets = {entry.genome: (entry.accuracy, entry.latency) for entry in valid_entries(entries, "genome", Subnet)}
    for entry in valid_entries(entries, "tried", Without):
        genome = "".join(str(int(number in entry.tried)) for number in range(section["blocks"]))
        subnets[genome] = (entry.accuracy, None)
    losses: dict[str, dict[int, float]] = {}
    for entry in valid_entries(entries, "training", Loss):
        losses.setdefault(entry.training, {})[entry.step] = entry.loss
    gates, times = valid_entries(entries, "gates", Gates), valid_entries(entries, "milliseconds", Latency)
    times = [entry.milliseconds for entry in times if {"original", "pruned"} <= set(entry.milliseconds)]
    return section | {
        "subnets": {name: subnet for name, subnet in subnets.items() if len(name) == section["blocks"]},
        "losses": {stage: dict(sorted(steps.items())) for stage, steps in losses.items()},
        "gates": gates[-1].gates if gates and len(gates[-1].gates) == section["blocks"] else [],
        "milliseconds": times[-1] if times else {},
    }


def depth_figures(folder: str | Path) -> dict[str, Any] | None:
    """Return the figures of a run's depth step, and a ``line`` of them in words; None for a run without one."""
    depth = read_depth(read_run(folder))
    if depth is None:
        return None
    named = ("method", "blocks", "pruned", "dropped", "accuracy", "milliseconds")
    return {name: depth.get(name) for name in named} | {"line": _line(depth)}


def _line(depth: dict[str, Any]) -> str:
    accuracy, times = depth["accuracy"], depth["milliseconds"]
    line = (
        f"depth: {len(depth['pruned'])} of {depth['blocks']} blocks pruned; accuracy on {accuracy['images']} held-out "
        f"images {accuracy['original']:.1%} → {accuracy['pruned']:.1%}"
    )
    if times:
        share = times["pruned"] / times["original"]
        line += f"; one image {figures(times['original'])} → {figures(times['pruned'])} ms ({share:.2f}x)"
    return line


def depth_tiles(depth: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the key figures: each as the figure, its meaning, and what to compare it with."""
    tiles = [(f"{len(depth['pruned'])} of {depth['blocks']}", "blocks pruned", f"by {depth['method']}")]
    if times := depth["milliseconds"]:
        own, now = times["original"], times["pruned"]
        against = f"{figures(own)} → {figures(now)} ms for one image"
        tiles.insert(0, (f"{own / now:.2f}×", "as fast", against))
    return tiles


def depth_section(run: Run) -> dict[str, Any] | None:
    """Return the section about depth; None for a run without a depth step."""
    depth = read_depth(run)
    if depth is None:
        return None
    pruned, times = set(depth["pruned"]), depth["milliseconds"]
    words = "dropped" if depth.get("dropped") else "pruned"
    paths = depth.get("paths") or []
    strip = [
        {"number": number, "kind": words if number in pruned else "", "path": paths[number] if paths[number:] else ""}
        for number in range(depth["blocks"])
    ]
    section = {
        "line": _line(depth).removeprefix("depth: "), "strip": strip, "word": words, "difference": None, "rows": [],
        "budget": _budget(run, times), "accuracy": depth["accuracy"], "times": times, "total": None,
    }  # fmt: skip
    if merged := depth.get("merged"):
        rows = [(_name(block["path"], paths), block["before"], block["after"]) for block in merged]
        total = lambda side, what: sum(block[side][what] for block in merged)
        sides = [{what: total(side, what) for what in ("layers", "multiply_adds")} for side in ("before", "after")]
        section |= {"rows": rows, "total": sides, "difference": depth.get("difference", 0.0)}
    return section | _charts(run, depth)


def _name(path: str, paths: list[str]) -> str:
    """Return a block as its number and path, if it is one of ``paths`` or in it."""
    numbers = [number for number, block in enumerate(paths) if path == block or path.startswith(f"{block}.")]
    return f"{numbers[0]}: {path}" if numbers else path


def _budget(run: Run, times: dict[str, float]) -> str:
    """Return in words whether the budget of the request is met; "" without one."""
    share, fps = _asked(run), (run.manifest.get("request") or {}).get("fps")
    if not times or not (share or fps):
        return ""
    own, now = times["original"], times["pruned"]
    if fps:
        word = "met" if 1000 / now >= fps else "missed"
        return f"Asked for: {fps:g} images/s. Measured: {figures(1000 / now)} images/s, so the budget is {word}."
    word = "met" if now / own <= share else "missed"
    return f"Asked for: {share:g} of the original's latency. Measured: {now / own:.3f}, so the budget is {word}."


def _asked(run: Run) -> float | None:
    """Return the latency that the recipe asks for, as a share of the original's; None if it asks for none."""
    options = [step["depth"] or {} for step in run.manifest["recipe"]["steps"] if "depth" in step]
    shares = [step.get("latency") for step in options if isinstance(step, dict)]
    return next((share for share in shares if isinstance(share, float | int) and 0 < share < 1), None)


def _charts(run: Run, depth: dict[str, Any]) -> dict[str, Any]:
    """Return the charts by their names in the template; None for a chart without data."""
    subnets, genome = depth["subnets"], "".join(str(int(n in depth["pruned"])) for n in range(depth["blocks"]))
    timed = {name: (latency, accuracy) for name, (accuracy, latency) in subnets.items() if latency is not None}
    search, caption = None, ""
    if timed:
        times = depth["milliseconds"]
        trained = {"original": (1.0, depth["accuracy"]["original"])}
        if times:
            trained["pruned"] = (times["pruned"] / times["original"], depth["accuracy"]["pruned"])
        search = depth_charts.subnets(timed, genome, trained)
        caption = (
            f"Accuracy, %, against the share of the original's latency: the {len(timed)} subnets that the search "
            "looked at, with the supernet's weights and their expected latency"
        )
    elif subnets:
        counts = {name: (name.count("1"), accuracy) for name, (accuracy, _) in subnets.items()}
        equal = len({count for count, _ in counts.values()}) == 1
        search = depth_charts.ranked(counts, genome) if equal else depth_charts.by_blocks(counts, genome)
        against = f"all with {genome.count('1')} blocks pruned, the best first" if equal else "against blocks pruned"
        caption = f"Accuracy, %, of the {len(subnets)} subnets that the search looked at, {against}"
    losses = [
        (STAGES.get(stage, stage), charts.embed(depth_charts.losses(steps), f"depth-loss-{number}"))
        for number, (stage, steps) in enumerate(depth["losses"].items())
    ]
    return {
        "search": charts.embed(search, "depth-search") if search else None,
        "caption": caption,
        "often": charts.embed(depth_charts.often(subnets, genome), "depth-often") if len(subnets) > 3 else None,
        "gates": charts.embed(depth_charts.gates(depth["gates"], genome), "depth-gates") if depth["gates"] else None,
        "losses": losses,
    }
