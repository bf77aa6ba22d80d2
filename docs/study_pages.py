"""The tables and plots of the studies, generated from the results of the benchmarks."""

import json
import re
from html import escape
from pathlib import Path

from pictures import gate_map, scatter, timelines

from jettison.xr.definitions import find_scenario

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "docs" / "studies"


def results() -> str:
    """Return the page of all claims and tables."""
    lines = [
        "# Results",
        "",
        "Every figure is measured, by the script that stands above it. A claim that does not hold stays in.",
    ]
    sign = {"higher": "≥", "lower": "≤", "equal": "="}
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        machine = result["machine"]
        lines += [
            "",
            f"## {file.stem}",
            "",
            f"`{result['command']}`, on {machine['cores']} cores ({machine['processor']}).",
        ]
        if result["claims"]:
            lines += ["", "| claim | measured | target | |", "|---|---|---|---|"]
        for claim in result["claims"]:
            value = f"{claim['value']:.4g}" if isinstance(claim["value"], float) else claim["value"]
            target = f"{sign[claim['better']]} {claim['target']}"
            holds = ("holds. " if claim["holds"] else "**falls short.** ") + claim["note"]
            lines += [f"| {claim['id']} | {value} {claim['unit']} | {target} | {holds} |"]
        for title, table in result["details"].get("tables", {}).items():
            lines += [
                "",
                f"### {title}",
                "",
                "| " + " | ".join(table["columns"]) + " |",
                "|---" * len(table["columns"]) + "|",
            ]
            lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in table["rows"]]
        if file.stem == "study":
            cells = result["details"]["cells"].items()
            lost = [
                (name, cell["books-evaluation"]["lost"], cell["books-evaluation"]["lost_error"]) for name, cell in cells
            ]
            lines += [
                "",
                "### Nats per token lost on books, the least first",
                "",
                plot(sorted(lost, key=lambda row: row[1])),
            ]
    return "\n".join(lines) + "\n"


def pruning() -> str:
    """Return studies/pruning.md with its tables generated anew from the result of benchmarks/sds/study.py."""
    text, file = (STUDIES / "pruning.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "results" / "sds.json"
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        lost = [
            (
                key.removeprefix("scribe: "),
                *(cell["texts"]["books-evaluation"][each] for each in ("lost", "lost_error")),
            )
            for key, cell in result["details"]["cells"].items()
            if key.startswith("scribe: ") and re.search(r" (50 %|70 %|2:4|4:8), (plain|sds|control)$", key)
        ]
        parts = [f"`{result['command']}`; claims and targets are on the [results page](results.md#sds).", ""]
        for title, table in result["details"]["tables"].items():
            parts += [f"### {title}", "", *_lines(table), ""]
        parts += ["### Nats per token lost on books, the least first", "", plot(sorted(lost, key=lambda row: row[1]))]
        lines[1:1] = parts
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def drafting() -> str:
    """Return studies/drafting.md, its tables generated anew from the result of benchmarks/drafting/self_draft.py."""
    text, file = (
        (STUDIES / "drafting.md").read_text(encoding="utf-8"),
        ROOT / "benchmarks" / "results" / "self_draft.json",
    )
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        lines[1:1] = [
            f"`{result['command']}`; claims and targets are on the [results page](results.md#self_draft).",
            "",
        ]
        for title, table in result["details"]["tables"].items():
            lines[-1:-1] = [f"### {title}", "", *_lines(table), ""]
        replayed = result["details"]["cells"].get("replayed", {"rows": []})["rows"]
        dots = [(f"{run['text']}: {run['draft']}", run["measured"], _spread(run["samples"])) for run in replayed]
        if dots:
            lines[-1:-1] = [
                "### Times as fast as plain decoding, replayed",
                "",
                plot(sorted(dots, key=lambda row: -row[1])),
            ]
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def depth() -> str:
    """Return studies/depth.md, its tables and curves made anew from the result of benchmarks/vision/depth.py."""
    text, file = (STUDIES / "depth.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "results" / "depth.json"
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        parts = [f"`{result['command']}`; claims and targets are on the [results page](results.md#depth).", ""]
        for name, points in result["details"]["curves"].items():
            dots = [{**point, "x": point["ms"], "y": 100 * point["accuracy"]} for point in points]
            picture = scatter(dots, "{:g} ms", "{:g} %", joined=("dense", "progressive"))
            parts += [f"### {name}: accuracy against milliseconds for one image, ONNX Runtime", "", picture, ""]
        for title, table in result["details"]["tables"].items():
            parts += [f"### {title}", "", *_lines(table), ""]
        lines[1:1] = parts
    else:
        lines[1:1] = ["**No result is recorded yet:** the trainings are not finished.", ""]
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def diffusion() -> str:
    """Return studies/diffusion.md, made anew from the result of benchmarks/diffusion/programs.py."""
    text = (STUDIES / "diffusion.md").read_text(encoding="utf-8")
    file = ROOT / "benchmarks" / "results" / "diffusion.json"
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        details, tables = result["details"], result["details"]["tables"]
        distance = details["model"]["distance_of_full_runs"]
        ratios = ", ".join(details["programs"])
        parts = [
            f"`{result['command']}`; claims and targets are on the [results page](results.md#diffusion). The distance "
            f"of full runs from real images is {distance[0]:.3g} ({distance[1]:.3g} to {distance[2]:.3g}).",
            "",
            "![Samples of full runs, programs and baselines](diffusion-samples.webp)",
            "",
            "A column for every class; all images of a column start from the same noise.",
            "",
            "### Which block is computed at which step",
            "",
            "A row for every block, a column for every step. The darker a cell, the more of the three programs",
            f"(pruning {ratios}) compute it.",
            "",
            gate_map({ratio: program["gates"] for ratio, program in details["programs"].items()}),
            "",
        ]
        for title, table in tables.items():
            parts += [f"### {title[0].upper()}{title[1:]}", "", *_lines(table), ""]
        lines[1:1] = parts
    else:
        lines[1:1] = ["**No result is recorded yet:** the model is not trained.", ""]
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def offload(name: str = "privatar") -> str:
    """Return studies/offload.md, made anew from the result of benchmarks/offload/privatar.py.

    name: of the result.
    """
    text = (STUDIES / "offload.md").read_text(encoding="utf-8")
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        details = result["details"]
        short = lambda point: point["name"].removesuffix(
            ", " + point["kind"].split(", ")[-1]
        )  # the colour says the rest
        dots = [{**point, "name": short(point), "x": point["ratio"], "y": point["loss"]} for point in details["pareto"]]
        parts = [
            f"`{result['command']}`; claims and targets are on the [results page](results.md#{name}). "
            f"{details['secrets']} expressions: {100 / details['secrets']:.1f} % are guessed without seeing anything.",
            "",
            "![Original, local part alone, offloaded, and the guesser's view](offload-row.png)",
            "",
            "From the left: the original, the local part alone, offloaded with noise of one nat, the guesser's view.",
            "",
            "### Loss against users",
            "",
            scatter(
                dots, "{:g}x", "{:g}", joined={dot["kind"] for dot in dots} - {"smaller, on the device", "local only"}
            ),
            "",
        ]
        for title, table in details["tables"].items():
            parts += [f"### {title[0].upper()}{title[1:]}", "", *_lines(table), ""]
        lines[1:1] = parts
    else:
        lines[1:1] = ["**No result is recorded yet:** the avatars are not trained.", ""]
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def xr() -> str:
    """Return studies/xrbench.md with its tables generated anew from the result of benchmarks/xr/xrbench.py."""
    details = json.loads((ROOT / "benchmarks" / "results" / "xrbench.json").read_text(encoding="utf-8"))["details"]
    scores = next(iter(details["tables"].values()))
    live = [["scenario", "scheduler", "score live", "simulated", "dropped live", "simulated"]]
    for scenario, runs in details["live"].items():
        for scheduler, run in ((name, run) for name, run in runs.items() if isinstance(run, dict)):
            figures = [f"{run['live']:.1f}", f"{run['simulated']:.1f}"]
            figures += [f"{run['live_drops']:.1f} %", f"{run['simulated_drops']:.1f} %"]
            live.append([scenario, scheduler, *figures])
    when = ("live before", "live after")
    rows = [["scenario", "model", "recipe found", "ms before", "ms after", "agreement", "score live before", "after"]]
    for scenario, tuned in details["tuned"].items():
        options = {(option["model"], option["recipe"]): option for option in tuned["options"]}
        title = f"{scenario}, {tuned['size']}"
        cores = [0.0, 0.0]
        for model, recipe in tuned["choice"].items():
            before, after = options[model, "original"], options[model, recipe]
            fastest = [min(each["latency_ms"]) for each in (before, after)]
            times = [f"{each:.1f}" for each in fastest]
            fps = find_scenario(scenario).task(model).fps
            cores = [sum_ + fps * each / 1e3 for sum_, each in zip(cores, fastest, strict=True)]
            scores_of = [f"{tuned['runs'][run]['models'][model][3]:.1f}" for run in when]
            rows.append([title, model, recipe, *times, f"{after['accuracy']:.3f}", *scores_of])
        whole = [f"**{tuned['runs'][run]['score']:.1f}**" for run in when]
        drops = [f"drops {tuned['runs'][run]['drops']:.1f} %" for run in when]
        needs = [f"{each:.1f} cores" for each in cores]
        rows.append([title, "all", "", *needs, "", *(", ".join(pair) for pair in zip(whole, drops, strict=True))])
    text = (STUDIES / "xrbench.md").read_text(encoding="utf-8")
    for name, table in (("scores", [scores["columns"], *scores["rows"]]), ("live", live), ("tuned", rows)):
        head = f"<!-- made by generate.py: {name} -->"
        lines = [f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])]
        generated = "\n".join([head, *lines, "<!-- end -->"])
        text = re.sub(f"{head}.*?<!-- end -->", lambda _, generated=generated: generated, text, flags=re.DOTALL)
    return text


def xr_timelines() -> str:
    """Return studies/xr-tuned.svg: the live runs of the first scenario before and after tuning."""
    details = json.loads((ROOT / "benchmarks" / "results" / "xrbench.json").read_text(encoding="utf-8"))["details"]
    scenario, tuned = next(iter(details["tuned"].items()))
    runs, definition = {}, find_scenario(scenario)
    for when in ("before", "after"):
        live = tuned["runs"][f"live {when}"]
        runs[f"{definition.title}, {when} tuning (live, {live['score']:.1f} points)"] = live["frames"]
    return timelines(runs, [task.name for task in definition.tasks], len(tuned["costs_before"]), span_ms=300)


def _spread(samples: dict[str, float]) -> float:
    # ``plot`` draws two errors to each side, so the line is as long as the range of the samples.
    return (samples["most"] - samples["least"]) / 4


def _lines(table: dict) -> list[str]:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def plot(rows: list[tuple[str, float, float]]) -> str:
    """Return an inline SVG of dots with their standard errors, one row each, in the colours of the page."""
    height, left, width = 20, 330, 380
    most = max(value + error for _, value, error in rows)
    x_of = lambda value: left + width * value / most
    parts = []
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0, most) if most <= 8 * step)
    for tick in range(0, int(most / step) + 1):
        x = x_of(tick * step)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{len(rows) * height}" opacity="0.15"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{(len(rows) + 0.8) * height:.0f}" text-anchor="middle">{tick * step:.2f}</text>'
        )
    for number, (name, value, error) in enumerate(rows):
        y = (number + 0.5) * height
        parts.append(f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{x_of(value - 2 * error):.1f}" x2="{x_of(value + 2 * error):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{x_of(value):.1f}" cy="{y}" r="4" fill="currentColor"/>')
    box = f'viewBox="0 0 {left + width + 30} {(len(rows) + 1) * height}"'
    style = 'font-family="sans-serif" font-size="12" stroke="currentColor" stroke-width="1"'
    return (
        f'<svg {box} {style} role="img">'
        + "".join(parts).replace("<text ", '<text stroke="none" fill="currentColor" ')
        + "</svg>"
    )
