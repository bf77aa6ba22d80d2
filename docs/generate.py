"""Write what repeats what stands elsewhere: start (README), recipes and methods (code), results (claims), engines."""

import json
import re
from html import escape
from pathlib import Path

from pictures import timelines

from jettison.formats.runtimes import Support, find_runtime, runtime_names
from jettison.recipe import registry
from jettison.recipe.recipe import load_recipe, preset_names
from jettison.xr.definitions import find_scenario

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def start() -> str:
    """The README; what lies outside the docs is named, not linked."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[([^\]]+)\]\((?!docs/|https?:)[^)]+\)", r"\1", text)
    return text.replace("](docs/", "](")


def recipes() -> str:
    lines = ["# Recipes and methods", "", "A recipe says what to do to which part of a model. These are shipped:", ""]
    for name in preset_names():
        recipe = load_recipe(name)
        text = (ROOT / "src" / "jettison" / "recipe" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        lines += [f"## {name}", "", recipe.use, "", "```yaml", text.strip(), "```", ""]
    lines += [
        "`loss` is the log-perplexity lost on books with `scribe`, in nats, measured by "
        "`benchmarks/recovery/presets.py`.",
        "",
    ]
    lines += ["# Methods", ""]
    for verb in registry.verbs():
        for method in registry.methods(verb).values():
            lines += [f"## {verb}: {method.name}", "", method.function.__doc__.partition("\n\n")[0].strip(), ""]
            lines += [f"Source: {method.paper}.", "", "| option | default |", "|---|---|"]
            lines += [f"| `{option}` | `{default}` |" for option, default in method.defaults.items()]
            lines += [""]
    return "\n".join(lines)


def runtimes() -> str:
    """docs/runtimes.md, its tables and the notes under them made anew."""
    grids = [["runtime", "format", "what", "bits", "group sizes", "symmetric", "columns", "rows"]]
    parts = [["runtime", "format", "head", "embedding", "experts", "share one grid"]]
    notes = []
    for runtime in map(find_runtime, runtime_names()):
        for format in runtime.formats:
            start = [runtime.name, format.name]
            grids += [[*start, *row] for row in _grids(format)]
            shared = [SHARED[format.share] if group == "experts" else group for group in format.fused]
            parts.append(
                [*start, *(_loads(format, sort) for sort in ("head", "embedding", "experts")), ", ".join(shared)]
            )
            said = [f"on {format.where}"] + (
                [f"LoRA adapters up to rank {runtime.max_rank}"] if runtime.max_rank else []
            )
            said += [format.note] * bool(format.note) + ["not written yet"] * (not format.written)
            checked = "Read in" if format.parts["linears"].verified else "**Not verified**:"
            notes.append(f"- {runtime.title}, {format.name}: {'; '.join(said)}. {checked} {format.source}.")
    table = lambda rows: [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    lines = ["<!-- made by generate.py -->", *table(grids), "", *table(parts), "", *notes, "<!-- end -->"]
    text = (DOCS / "runtimes.md").read_text(encoding="utf-8")
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def xr() -> str:
    """docs/xr.md, its tables made anew from what benchmarks/xr/xrbench.py measured."""
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
        named = f"{scenario}, {tuned['size']}"
        cores = [0.0, 0.0]
        for model, recipe in tuned["choice"].items():
            before, after = options[model, "original"], options[model, recipe]
            fastest = [min(each["latency_ms"]) for each in (before, after)]
            times = [f"{each:.1f}" for each in fastest]
            fps = find_scenario(scenario).task(model).fps
            cores = [sum_ + fps * each / 1e3 for sum_, each in zip(cores, fastest, strict=True)]
            scores_of = [f"{tuned['runs'][run]['models'][model][3]:.1f}" for run in when]
            rows.append([named, model, recipe, *times, f"{after['accuracy']:.3f}", *scores_of])
        whole = [f"**{tuned['runs'][run]['score']:.1f}**" for run in when]
        drops = [f"drops {tuned['runs'][run]['drops']:.1f} %" for run in when]
        needed = [f"{each:.1f} cores" for each in cores]
        rows.append([named, "all", "", *needed, "", *(", ".join(pair) for pair in zip(whole, drops, strict=True))])
    text = (DOCS / "xr.md").read_text(encoding="utf-8")
    for name, table in (("scores", [scores["columns"], *scores["rows"]]), ("live", live), ("tuned", rows)):
        head = f"<!-- made by generate.py: {name} -->"
        lines = [f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])]
        made = "\n".join([head, *lines, "<!-- end -->"])
        text = re.sub(f"{head}.*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def xr_timelines() -> str:
    """docs/xr-tuned.svg: the live runs of the first scenario before and after tuning."""
    details = json.loads((ROOT / "benchmarks" / "results" / "xrbench.json").read_text(encoding="utf-8"))["details"]
    scenario, tuned = next(iter(details["tuned"].items()))
    runs, found = {}, find_scenario(scenario)
    for when in ("before", "after"):
        live = tuned["runs"][f"live {when}"]
        runs[f"{found.title}, {when} tuning (live, {live['score']:.1f} points)"] = live["frames"]
    return timelines(runs, [task.name for task in found.tasks], len(tuned["costs_before"]), span_ms=300)


SHARED = {"fused": "a projection of a block's experts", "block": "a block's experts", "model": "all experts"}


def _grids(format: Support) -> list[list[str]]:
    """A row per kind of grid: those for all matrices first, then those that head, embedding or experts have alone."""
    own = {sort: part for sort, part in format.parts.items() if part.kinds != format.parts["linears"].kinds}
    listed = lambda values: "any" if values is None else ", ".join(str(value).lower() for value in values)
    multiple = lambda count: f"{count}n" if count > 1 else ""
    return [
        [
            f"{sort}, {kind.name}" if sort in own and kind.name else sort if sort in own else kind.name,
            *(listed(values) for values in (kind.bits, kind.group_sizes, kind.symmetric)),
            *(multiple(count) for count in (kind.columns_multiple_of, kind.rows_multiple_of)),
        ]
        for sort, part in {"linears": format.parts["linears"], **own}.items()
        for kind in part.kinds
    ]


def _loads(format: Support, sort: str) -> str:
    part = format.parts[sort]
    said = ["yes" if part.kinds else "no"]
    said += [f"in {', '.join(part.only)}"] * bool(part.only) + [f"not in {', '.join(part.not_in)}"] * bool(part.not_in)
    if sort == "experts" and part.kinds:
        said += ["not stacked ones"] * (not format.stacked) + ["all, if anything is"] * (not format.may_stay)
    doubt = "" if part.verified == format.parts["linears"].verified else " (not verified)"
    return ", ".join(said) + doubt


def pruning() -> str:
    """docs/pruning.md, its tables made anew from what benchmarks/sds/study.py found."""
    text, file = (DOCS / "pruning.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "results" / "sds.json"
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
        found = [f"`{result['command']}`; claims and targets are on the [results page](results.md#sds).", ""]
        for title, table in result["details"]["tables"].items():
            found += [f"### {title}", "", *_lines(table), ""]
        found += ["### Nats per token lost on books, the least first", "", plot(sorted(lost, key=lambda row: row[1]))]
        lines[1:1] = found
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def drafting() -> str:
    """docs/drafting.md, its tables made anew from what benchmarks/drafting/self_draft.py found."""
    text, file = (DOCS / "drafting.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "results" / "self_draft.json"
    lines = ["<!-- made by generate.py -->", "<!-- end -->"]
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        lines[1:1] = [
            f"`{result['command']}`; claims and targets are on the [results page](results.md#self_draft).",
            "",
        ]
        for title, table in result["details"]["tables"].items():
            lines[-1:-1] = [f"### {title}", "", *_lines(table), ""]
        runs = result["details"]["cells"].get("replayed", {"rows": []})["rows"]
        dots = [(f"{each['text']}: {each['draft']}", each["measured"], _spread(each["samples"])) for each in runs]
        if dots:
            lines[-1:-1] = [
                "### Times as fast as plain decoding, replayed",
                "",
                plot(sorted(dots, key=lambda row: -row[1])),
            ]
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


def _spread(samples: dict[str, float]) -> float:
    return (samples["most"] - samples["least"]) / 4  # the line that ``plot`` draws goes from one end to the other


def _lines(table: dict) -> list[str]:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def results() -> str:
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


def plot(rows: list[tuple[str, float, float]]) -> str:
    """Dots with their standard errors, one row each, as an inline SVG in the colours of the page."""
    height, left, width = 20, 330, 380
    most = max(value + error for _, value, error in rows)
    at = lambda value: left + width * value / most
    parts = []
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0, most) if most <= 8 * step)
    for tick in range(0, int(most / step) + 1):
        x = at(tick * step)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{len(rows) * height}" opacity="0.15"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{(len(rows) + 0.8) * height:.0f}" text-anchor="middle">{tick * step:.2f}</text>'
        )
    for number, (name, value, error) in enumerate(rows):
        y = (number + 0.5) * height
        parts.append(f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{at(value - 2 * error):.1f}" x2="{at(value + 2 * error):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4" fill="currentColor"/>')
    box = f'viewBox="0 0 {left + width + 30} {(len(rows) + 1) * height}"'
    style = 'font-family="sans-serif" font-size="12" stroke="currentColor" stroke-width="1"'
    return (
        f'<svg {box} {style} role="img">'
        + "".join(parts).replace("<text ", '<text stroke="none" fill="currentColor" ')
        + "</svg>"
    )


if __name__ == "__main__":
    pages = {"index": start(), "recipes": recipes(), "results": results(), "runtimes": runtimes(), "xr": xr()}
    pages |= {"pruning": pruning(), "drafting": drafting()}
    for name, page in pages.items():
        (DOCS / f"{name}.md").write_text(page, encoding="utf-8")
    (DOCS / "xr-tuned.svg").write_text(xr_timelines(), encoding="utf-8")
