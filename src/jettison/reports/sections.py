"""The sections of the page in words and figures. A section is None if the run has no data for it."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from jettison.core.bytesize import format_bytes, parse_bytes
from jettison.core.numbers import format_rate
from jettison.encodings.kinds import make_grid
from jettison.recipe.registry import methods
from jettison.reports.commands import commands
from jettison.reports.images import accuracy_line, image_tiles
from jettison.reports.program import program_headline, program_tiles
from jettison.reports.run import Run

GRID_OPTIONS = ("values", "bits", "group_size", "symmetric")
CHOOSING = {"depth": "blocks that it chooses", "program": "blocks and steps that it chooses"}
NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(share: float, digits: int = 1) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def size(count: float) -> str:
    """Format a number of bytes; figure and unit stay on one line in headlines and narrow tables."""
    return format_bytes(count).replace(" ", NO_BREAK)


def headline(run: Run) -> str:
    """Return the key result in one line."""
    if run.last is None:
        return f"{run.name}, compressed by the recipe {run.manifest['recipe']['name']}"
    sizes = [run.results[stage]["size"]["bytes"] for stage in ("original", run.last) if stage in run.results]
    faster = program_headline(run)
    if faster and len(set(sizes)) == 1:
        return f"{run.name}: {faster}"
    line = f"{run.name}: {' → '.join(size(count) for count in sizes)}" + (f", {faster}" if faster else "")
    if not run.texts or "original" not in run.results:
        return line + accuracy_line(run)
    text = run.texts[0]
    before, after = (run.results[stage]["texts"][text]["perplexity"] for stage in ("original", run.last))
    return f"{line}, perplexity on {text} {before:.2f} → {after:.2f}"


def lead(run: Run) -> str:
    """Return what the headline leaves open: the recipe, the texts, and the distance from the original."""
    lines = [f"Recipe {run.manifest['recipe']['name']}."]
    for text in run.texts if run.last else ():
        measured = run.results[run.last]["texts"][text]
        line = f"On {text}: "
        if "original" in run.results:
            line += f"perplexity {run.results['original']['texts'][text]['perplexity']:.2f} → "
        line += f"{measured['perplexity']:.2f}"
        if "agreement" in measured:
            line += f", the same likeliest next token in {percent(measured['agreement'])} of places"
        lines.append(line + ".")
    return " ".join(lines)


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return the key figures: each as the figure, its meaning, and what to compare it with."""
    if run.last is None or "original" not in run.results:
        return []
    before, after = run.results["original"], run.results[run.last]
    large, small = before["size"], after["size"]
    ratio, tiles = f"{large['bytes'] / small['bytes']:.1f}×", program_tiles(run)
    if not tiles or large["bytes"] != small["bytes"]:  # a program alone leaves the size as it is
        tiles.append((ratio, "smaller", f"{size(large['bytes'])} → {size(small['bytes'])}"))
    bits = [f"{stage['bits_per_weight']:.2f}" for stage in (small, large)]
    if bits[0] != bits[1]:  # depth alone changes none
        tiles.append((bits[0], "bits per weight", f"{bits[1]} before"))
    for text in run.texts[:1]:
        measured = after["texts"][text]
        if "kl" in measured:
            tiles.append((f"{measured['kl']:.3f}", "nats from the original", f"KL on {text}"))
            tiles.append((percent(measured["agreement"]), "same likeliest token", f"on {text}"))
    tiles += image_tiles(run)
    for kind, rates in (
        ("measured", run.measured_speed("decode")),
        ("predicted", predicted(run, "tokens_per_second")),
    ):
        if "original" in rates and run.last in rates:
            faster = f"{rates[run.last] / rates['original']:.1f}×"
            against = f"{format_rate(rates[run.last])} tokens/s decoding"
            if kind == "measured":
                fewest = min(len(run.speed_samples("decode", stage)) for stage in ("original", run.last))
                against += ", one sample" if fewest == 1 else f", median of {fewest}"
            tiles.append((faster, f"the speed, {kind}", against))
            break
    return tiles


def predicted(run: Run, what: str) -> dict[str, float]:
    """Return what the roofline predicted for the original and for the result.

    what: ``tokens_per_second`` or ``memory``.
    Returns stage -> figure; the result goes by its stage.
    """
    predictions = (run.manifest.get("request") or {}).get("predicted") or {}
    stages = {"original": predictions.get("original"), run.last or run.words["quantized"]: predictions.get("result")}
    return {stage: figures[what] for stage, figures in stages.items() if figures and figures.get(what)}


def drafts(run: Run) -> dict[str, Any] | None:
    """Return the result of `jettison draft`: its verdict, the candidates, and those that text was written with."""
    if not run.draft:
        return None
    measured = run.draft.get("measured") or {}
    rows = [
        [row["draft"], percent(row["acceptance"], 0), f"{row['step']:.2f}", f"{row['expected']:.2f}×"]
        for row in measured.get("rows") or []
    ]
    tried = [
        [row["draft"], f"{row['expected']:.2f}×", f"{row['measured']:.2f}×"] for row in measured.get("tried") or []
    ]
    pays = run.draft.get("draft") is not None
    return {"verdict": ("" if pays else "No draft pays: ") + run.draft.get("reason", ""), "rows": rows, "tried": tried}


def asked(run: Run) -> dict[str, Any] | None:
    """Return the request that the run was made for; None for a run without one.

    wishes: label and value.
    budgets: what, asked, original, result, and whether the result is predicted to meet the budget.
    """
    request = run.manifest.get("request")
    if not request:
        return None
    tps, memory, recipe = request.get("tps"), request.get("memory"), request.get("recipe")
    measured = [*(request.get("texts") or []), *(request.get("tasks") or [])]
    measured += [request["images"]] if request.get("images") else []
    wishes = [
        ("model", request["model"]),
        ("device", run.device),
        ("recipe", recipe if recipe else "the planner's choice"),
        ("latency", f"at most {request['latency']:g} of the original's" if request.get("latency") else ""),
        ("images per second", f"at least {request['fps']:g}" if request.get("fps") else ""),
        ("speedup", f"at least {request['speedup']:g} times as fast" if request.get("speedup") else ""),
        ("changes to it", ", ".join(request.get("changes") or [])),
        ("measured on", ", ".join(measured)),
    ]
    speeds, sizes = predicted(run, "tokens_per_second"), predicted(run, "memory")
    limit = parse_bytes(memory) if memory else None
    budgets = [
        _budget(run, "tokens per second", speeds, tps, "at least", format_rate, lambda got: got >= tps),
        _budget(run, "memory", sizes, limit, "at most", size, lambda got: got <= limit),
    ]
    return {
        "wishes": [(name, value) for name, value in wishes if value],
        "context": request.get("context"),
        "device": run.device,
        "budgets": [budget for budget in budgets if budget],
    }


def _budget(
    run: Run,
    what: str,
    figures: Mapping[str, float],
    wish: float | None,
    word: str,
    show: Callable[[float], str],
    meets: Callable[[float], bool],
) -> dict[str, str] | None:
    """Return the row of a budget as texts; None if it was neither set nor predicted."""
    if not figures and wish is None:
        return None
    original, result = figures.get("original"), figures.get(run.last or run.words["quantized"])
    return {
        "what": what,
        "asked": "" if wish is None else f"{word} {show(wish)}",
        "original": "" if original is None else show(original),
        "result": "" if result is None else show(result),
        "met": "" if wish is None or result is None else "met" if meets(result) else "missed",
    }


def recipe(run: Run) -> dict[str, Any]:
    """Return the recipe: name, use, reasons, its steps in words, and the calibration."""
    entry = run.manifest["recipe"]
    steps = entry.get("steps") or []
    return {
        "name": entry.get("name", "custom"),
        "use": entry.get("use", ""),
        "why": entry.get("why") or [],
        "steps": [_step(step) for step in steps],
        "calibration": _calibrated(entry.get("calibration") or {}) if any(map(_reads_data, steps)) else "",
    }


def _reads_data(entry: Mapping[str, Any]) -> bool:
    """Whether a step of a recipe reads the calibration data; True for a method that is not installed."""
    verb = next(name for name in entry if name != "where")
    options = entry[verb] or {}
    if (method := methods(verb).get(options.get("method", ""))) is None:
        return True
    if method.scope == "run":
        return verb == "depth"  # it trains on these images
    adaptive = options.get("allocation", "uniform") != "uniform"
    return adaptive or bool(method.needs_with(method.defaults | options))


def _calibrated(calibration: Mapping[str, Any]) -> str:
    """Return the calibration in words."""
    unused = {"text", "length"} if calibration.get("images") else set()  # images have neither
    return ", ".join(f"{name} {value}" for name, value in calibration.items() if name not in unused)


def _step(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return a step of a recipe in words: verb, method, what it does, where."""
    verb = next(name for name in entry if name != "where")
    options = dict(entry[verb] or {})
    what = []
    if "values" in options or "bits" in options:
        what.append(str(make_grid({name: options[name] for name in GRID_OPTIONS if name in options})))
    if "train" in options:
        what.append(f"trains {' and '.join(options['train'])}")
    named = ("rank", "samples", "length", "lr")
    if verb in CHOOSING:
        named = tuple(name for name in options if name != "method" and options[name] is not None)
    what += [f"{name.replace('_', ' ')} {options[name]}" for name in named if name in options]
    where = entry.get("where") or {}
    selection = CHOOSING.get(verb, "")
    selection = selection or "; ".join(map(_roles_and_blocks, where if isinstance(where, list) else [where]))
    return {"verb": verb, "method": options.get("method", ""), "what": ", ".join(what), "where": selection}


def _roles_and_blocks(where: Mapping[str, Any]) -> str:
    blocks = f", blocks {', '.join(map(str, where['block']))}" if where.get("block") else ""
    return ", ".join(where.get("role") or ["all linears"]) + blocks


def quality(run: Run) -> dict[str, Any] | None:
    """Return the figures of every stage and the recovered share per text; None if no texts were measured."""
    if not run.texts:
        return None
    stages = {stage: result["texts"] for stage, result in run.results.items()}
    texts = [
        {
            "name": text,
            "share": run.share(text),
            "rows": [(stage, measured[text]) for stage, measured in stages.items()],
        }
        for text in run.texts
    ]
    recoveries = [step["recover"] or {} for step in run.manifest["recipe"]["steps"] if "recover" in step]
    adapters = any("lora" in recovery.get("train", ()) for recovery in recoveries)
    return {"texts": texts, "adapters": adapters and "recovered" in stages}


def tasks(run: Run) -> dict[str, Any] | None:
    """Return the section about tasks; None if no tasks were measured.

    stages: the stages that have accuracies.
    shares: the recovered shares of tasks whose loss is larger than its statistical error.
    unsure: tasks whose loss is not.
    better: tasks on which the recovered model is better than the original.
    """
    measured = [stage for stage, result in run.results.items() if result.get("tasks")]
    shares = run.manifest.get("tasks") or []
    if not measured and not shares:
        return None
    unsure = [share["task"] for share in shares if not share["counts"]]
    sure = [share for share in shares if share["counts"]]
    better = [share["task"] for share in sure if share["recovered"] > 1]
    return {"stages": measured, "shares": sure, "unsure": unsure, "better": better}


def samples(run: Run) -> list[dict[str, Any]]:
    """Return the prompts in order, and the text with which each stage continued them."""
    texts_of: dict[str, dict[str, str]] = {}  # prompt -> stage -> text
    for stage, result in run.results.items():
        for sample in result.get("samples") or []:
            texts_of.setdefault(sample["prompt"], {})[stage] = sample["text"]
    return [{"prompt": prompt, "texts": texts} for prompt, texts in texts_of.items()]


def check(run: Run) -> dict[str, Any] | None:
    """Return the result of the check after writing, in words; None if there was no check."""
    result = run.manifest.get("check")
    if not result or not (result["linears"] or result.get("notes")):
        return None
    line = (
        f"After writing, all {result['linears']} compressed linears were read back and compared with the intended "
        "weights."
    )
    if result.get("block"):
        index, difference = result["block"]["index"], result["block"]["difference"]
        line += f" The output of block {index} from packed weights differs by {difference:.1e} from that of dense ones."
    return {"line": line, "notes": result.get("notes") or []}


def reproduce(run: Run) -> dict[str, Any]:
    """Return what is needed to make the run again: shell commands, versions, seed, and the recipe as YAML."""
    manifest = run.manifest
    versions = {"jettison": manifest.get("jettison")} | (manifest.get("versions") or {})
    return {
        "commands": commands(run),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "seed": manifest.get("seed", 0),
        "recipe": yaml.safe_dump(
            manifest["recipe"], sort_keys=False, allow_unicode=True, width=90, default_flow_style=None
        ),
        "license": manifest.get("license"),
        "notes": manifest.get("not_in_transformers") or [],
    }
